"""Locks that live as long as a process does: `flock` on a file of `locks/`, whose descriptor children may inherit.

A lock file is removed by whoever holds its lock, once its step is finished; so that nobody locks a removed file,
`acquire` checks that what it locked is still what the path names.
"""

import fcntl
import os
import time
from pathlib import Path

#: `is_held` takes a lock for a moment, so a busy lock is tried again before it counts as held
TRIES = 3
PAUSE = 0.005


def acquire(path: Path, shared: bool = False, wait: bool = False) -> int | None:
    """The descriptor that holds the lock of `path`, or None where another process holds it and `wait` is False.

    The lock ends when every copy of the descriptor is closed, in this process and in all that inherited it.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    tries = 0
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, how)
            if _names(path, descriptor):
                return descriptor
        except BlockingIOError:
            tries += 1
            if tries == TRIES:
                os.close(descriptor)
                return None
            time.sleep(PAUSE)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def release(descriptor: int, remove: Path | None = None) -> None:
    """Give up the lock; `remove` is its file, where nobody will need it again."""
    if remove is not None:
        remove.unlink(missing_ok=True)
    os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of `path`; leaves no file behind where there was none."""
    for _ in range(TRIES):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            time.sleep(PAUSE)
        finally:
            os.close(descriptor)
    return True


def _names(path: Path, descriptor: int) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))
