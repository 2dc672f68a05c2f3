"""Judges: what they are asked, how their answers are read, and what the field's benchmarks make of verdicts."""
