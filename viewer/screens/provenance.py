"""Provenance."""

from cdpo.viewer import look

look.head("Provenance", "")
