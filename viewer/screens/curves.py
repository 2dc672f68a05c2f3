"""Curves."""

from cdpo.viewer import look

look.head("Curves", "")
