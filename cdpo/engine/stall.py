"""Ends a step that has written nothing for a set time: a rank that waits for another, a server that never answers.

A step that lives tells so: events, metrics, checkpoints, responses and its log all grow in its work folder. A thread of
the worker looks there. It needs Python's lock for a moment, as every thread does: code that never lets go of that
(C code, hardly ever) cannot be seen from here.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: seconds between two looks, at most
LOOK = 10.0
#: seconds in which the ranks write down where they stand
DUMP = 2.0


@contextlib.contextmanager
def watched(work: Path, minutes: float | None, failed: Callable[[str], None]) -> Iterator[None]:
    """While entered, have the step of `work` ended when nothing there has changed for so many minutes (None: never).

    Then the stacks of all threads of the worker and of its ranks go to the step's log, `failed` is told the reason,
    and the ranks and this process are killed.
    """
    if minutes is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(work, 60.0 * minutes, failed, over), daemon=True, name="stall")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def show_stacks_on_signal() -> None:
    """For ranks: on SIGUSR1 write the stacks of all threads to the log."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def _watch(work: Path, seconds: float, failed: Callable[[str], None], over: threading.Event) -> None:
    pause = min(LOOK, seconds / 4)
    silent, seen = 0.0, _state(work)
    while not over.wait(pause):
        now = _state(work)
        # looks are counted, not hours: a step that the batch system suspends is not to blame
        silent, seen = (silent + pause if now == seen else 0.0), now
        if silent >= seconds:
            break
    else:
        return
    print(f"no progress for {_duration(seconds)}; where everything stands:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(all_threads=True)
    ranks = [pid for pid in descendants(os.getpid()) if _catches(pid, signal.SIGUSR1)]
    for pid in ranks:
        _send(pid, signal.SIGUSR1)
    if ranks:
        time.sleep(DUMP)
    failed(
        f"no progress for {_duration(seconds)}: nothing was written to the log, events, metrics or checkpoints. At the "
        "end of the log are the stacks of all threads, which say what it waits for. Where a step may be silent for so "
        "long, raise `watchdog: {stall_minutes: ...}` in devices.yaml"
    )
    for pid in descendants(os.getpid()):
        _send(pid, signal.SIGKILL)
    os._exit(1)


def _state(work: Path) -> frozenset[tuple[str, int, int]]:
    """Every file below `work`, its size and when it was written."""
    found = set()
    for folder, _, names in os.walk(work):
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # between listing and looking
                about = os.stat(path)
                found.add((path, about.st_size, about.st_mtime_ns))
    return frozenset(found)


def descendants(pid: int) -> list[int]:
    """The living processes that `pid` started, and those that they started, in whatever session."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{entry}/stat", "rb") as stream:
                    parent = int(stream.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, which would kill it otherwise."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as stream:
        for line in stream:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
