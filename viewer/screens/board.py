"""Board."""

from cdpo.viewer import look

look.head("Board", "")
