"""Compare."""

from cdpo.viewer import look

look.head("Compare", "")
