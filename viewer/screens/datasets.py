"""Datasets."""

from cdpo.viewer import look

look.head("Datasets", "")
