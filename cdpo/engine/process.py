"""Processes by identity: a pid may be given to another process later, a pid with its start time never."""

import os
import signal
from collections.abc import Mapping
from typing import Any

PR_SET_PDEATHSIG = 1
#: exit code of a worker that SIGTERM stopped
STOPPED = 128 + signal.SIGTERM


class Stopped(BaseException):
    """SIGTERM reached this worker; not an Exception, so that a pipeline's `except Exception` lets it through."""


def identity(pid: int | None = None) -> dict[str, int]:
    """{"pid", "start"} of a living process, by default this one; `start` counts clock ticks since the machine started.

    Raises ProcessLookupError where there is none.
    """
    pid = os.getpid() if pid is None else pid
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            # the name in brackets may hold anything, brackets too
            fields = stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(f"process {pid} has ended")
    return {"pid": pid, "start": int(fields[19])}


def is_alive(who: Mapping[str, Any] | None) -> bool:
    """Whether the process that `identity` described still runs."""
    if not who or not who.get("pid"):
        return False
    try:
        return bool(identity(who["pid"])["start"] == who["start"])
    except ProcessLookupError:
        return False


def signal_group(pid: int, number: int) -> None:
    """Signal a worker and what it started in its group; no error where it is gone."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, whatever ends it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
