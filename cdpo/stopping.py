"""SIGTERM: ends a process where it stands, but a training loop is let finish its optimiser step and write a checkpoint.

A worker obeys a second signal at once. Ranks may get several for one stop (from their worker, from a batch system that
signals every process of a job), so to them a second one says nothing new; they die with their worker.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

#: exit code of a worker that SIGTERM stopped
STOPPED = 128 + signal.SIGTERM

_asked = _finishing = False


class Stopped(BaseException):
    """SIGTERM reached this process; not an Exception, so that a pipeline's `except Exception` lets it through."""


def obey(*, insistent: bool) -> None:
    """Have SIGTERM raise Stopped in the main thread; with `insistent` a second one ends the process at once."""
    global _asked

    def stop(number: int, frame: FrameType | None) -> None:
        global _asked
        if _asked:
            if insistent:
                os._exit(STOPPED)
            return
        _asked = True
        if not _finishing:
            raise Stopped

    _asked = False
    signal.signal(signal.SIGTERM, stop)


def asked() -> bool:
    """Whether this process was told to stop."""
    return _asked


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """While entered, SIGTERM raises nothing: whoever works here looks at `asked` from time to time, and raises Stopped.

    A signal that came after the last look raises it at the end.
    """
    global _finishing
    _finishing = True
    try:
        yield
    finally:
        _finishing = False
    if _asked:
        raise Stopped
