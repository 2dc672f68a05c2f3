"""Processes by identity: a pid may be given to another process later, a pid with its start time never."""

import errno
import os
import signal
from collections.abc import Mapping
from typing import Any

#: {"pid", "start"}: see `identity`
Identity = dict[str, int]

PR_SET_PDEATHSIG = 1


def identity(pid: int | None = None) -> Identity:
    """{"pid", "start"} of a living process, by default this one; `start` counts clock ticks since the machine started.

    Raises ProcessLookupError where there is none.
    """
    pid = os.getpid() if pid is None else pid
    fields = _stat(pid)
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(f"process {pid} has ended")
    return {"pid": pid, "start": int(fields[19])}


def descends(pid: int, ancestor: int) -> bool:
    """Whether `pid` is `ancestor`, or was started by it or by what it started, as long as those between live."""
    while pid not in (0, ancestor):
        try:
            pid = int(_stat(pid)[1])
        except ProcessLookupError:
            return False
    return pid == ancestor


def _stat(pid: int) -> list[bytes]:
    """/proc/PID/stat from its third field (the state) on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            # the name in brackets may hold anything, brackets too
            return stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(f"no process {pid}") from None


def is_alive(who: Mapping[str, Any] | None) -> bool:
    """Whether the process that `identity` described still runs."""
    if not who or not who.get("pid"):
        return False
    try:
        return bool(identity(who["pid"])["start"] == who["start"])
    except ProcessLookupError:
        return False


def send(who: Mapping[str, Any], number: int) -> bool:
    """Signal the process that `identity` described, and never another that got its pid; False where it has ended.

    Raises PermissionError where it is another user's.
    """
    try:
        descriptor = os.pidfd_open(who["pid"])
    except ProcessLookupError:
        return False
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        # Linux before 5.3: between the look and the signal lie microseconds, and a pid is not given away again so soon
        if is_alive(who):
            os.kill(who["pid"], number)
            return True
        return False
    try:
        # whatever becomes of the pid, the descriptor stays with one process; is it the one that is meant?
        if not is_alive(who):
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)


def describe(pid: int) -> str:
    """`process 4711 (python, anna)`, as far as it can be found out."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
            name = stream.read().strip()
        return f"process {pid} ({name}, {user_name(os.stat(f'/proc/{pid}').st_uid)})"
    except OSError:
        return f"process {pid}"


def user_name(number: int) -> str:
    """The login name of a user id; the id where it has none here, as in many containers."""
    import pwd

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, whatever ends it."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
