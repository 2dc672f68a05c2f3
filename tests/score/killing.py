"""A step in a process of its own that is killed by SIGKILL, once its journal holds so many results."""

import os
import signal
from collections.abc import Callable
from typing import Any

from cdpo.journal import Journal
from cdpo.step import Step


def kill_after(results: int, run: Callable[[Step], Any], step: Step) -> None:
    pid = os.fork()
    if pid == 0:
        append = Journal.append

        def counted(self: Journal, key: str, value: Any) -> None:
            append(self, key, value)
            if len(self.items) == results:
                os.kill(os.getpid(), signal.SIGKILL)

        Journal.append = counted  # type: ignore[method-assign]
        try:
            run(step)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
