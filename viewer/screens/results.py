"""Results."""

from cdpo.viewer import look

look.head("Results", "")
