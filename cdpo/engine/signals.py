"""Waits for whatever comes first: a worker's end, a signal to the engine, or a moment to look around."""

import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Signals:
    """While entered, SIGINT and SIGTERM are counted instead of obeyed, and they and SIGCHLD end a `wait` at once.

    Outside the main thread signals cannot be caught; there `wait` only sleeps.
    """

    def __init__(self) -> None:
        #: SIGINT and SIGTERM so far
        self.stops = 0
        self._before: dict[int, Any] = {}
        self._reading = self._writing = self._wakeup = -1

    def __enter__(self) -> "Signals":
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._stop)
            self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _ignore)
            self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before:
            signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reading)
        os.close(self._writing)

    def wait(self, seconds: float) -> None:
        """Sleep until a signal comes, at most so long."""
        ready, _, _ = select.select([self._reading], [], [], seconds)
        if ready:
            os.read(self._reading, 4096)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1


def _ignore(number: int, frame: FrameType | None) -> None:
    """SIGCHLD must have a handler to end a `select`; the children are reaped by whoever started them."""
