"""Locks that live as long as a process does: `flock` on a file of `locks/`, whose descriptor children may inherit.

On network file systems, and where there is no flock, a lock is a claim instead (cdpo/store/claims.py): a folder under
the same name, so that one kind is never taken beside the other.

A lock file is removed by whoever holds its lock, once its step is finished; so that nobody locks a removed file,
`acquire` checks that what it locked is still what the path names.
"""

import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cdpo.errors import CdpoError
from cdpo.store import claims
from cdpo.store.filesystem import has_flock

#: `is_held` takes a lock for a moment, so a busy lock is tried again before it counts as held
TRIES = 3
PAUSE = 0.005


class Lock(Protocol):
    """A lock that this process holds."""

    @property
    def descriptors(self) -> Sequence[int]:
        """What a child must inherit."""

    def described(self) -> dict[str, Any]:
        """What a child must be told, for `inherited`."""

    def hand_over(self, pid: int) -> None:
        """Let go of it, so that the child `pid` alone holds it from now on."""

    def release(self, remove: bool = False) -> None:
        """Give it up; with `remove` also its file, where nobody will need it again."""


@dataclass(frozen=True)
class Flock:
    """A lock that ends when every copy of its descriptor is closed, here and in all that inherited it."""

    path: Path
    descriptor: int

    @property
    def descriptors(self) -> Sequence[int]:
        return (self.descriptor,)

    def described(self) -> dict[str, Any]:
        return {"flock": str(self.path), "descriptor": self.descriptor}

    def hand_over(self, pid: int) -> None:
        os.close(self.descriptor)

    def release(self, remove: bool = False) -> None:
        try:
            if remove:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self.descriptor)


def inherited(described: Mapping[str, Any]) -> Lock | None:
    """The lock that the process which started this one gave to it; None where another has it by now."""
    if "flock" in described:
        return Flock(Path(described["flock"]), described["descriptor"])
    return claims.inherited(described)


def acquire(path: Path, shared: bool = False, wait: bool = False) -> Lock | None:
    """The lock of `path`, or None where another process holds it and `wait` is False.

    Raises CdpoError where it was waited for too long, or where `path` is locked in a way that cannot be trusted here.
    """
    if path.is_dir() or not has_flock(path.parent):
        _no_file(path)
        return claims.join(path) if shared else claims.acquire(path, wait)
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    tries = 0
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except IsADirectoryError:
            # a machine on which flock cannot be trusted has just claimed it
            return acquire(path, shared, wait)
        try:
            fcntl.flock(descriptor, how)
            if _names(path, descriptor):
                return Flock(path, descriptor)
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


def is_held(path: Path) -> bool:
    """Whether some process holds the lock of `path`; leaves no file behind where there was none."""
    for _ in range(TRIES):
        if path.is_dir():
            return claims.holders(path) != []
        try:
            # not to be written to: who may only read the store may ask too
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except IsADirectoryError:
            continue
        try:
            if not has_flock(path.parent):
                return True
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            time.sleep(PAUSE)
        finally:
            os.close(descriptor)
    return True


def forget(path: Path) -> None:
    """Remove the file of a lock that nobody holds, or what processes that ended left of a claim."""
    if path.is_dir():
        claims.forget(path)
    else:
        path.unlink(missing_ok=True)


def told(path: Path) -> str:
    """How to find out who holds the lock of `path`, in words."""
    return claims.told(path) if path.is_dir() else f"`fuser {path}` names it"


def _no_file(path: Path) -> None:
    if path.is_file():
        raise CdpoError(
            f"{path}: locked by flock, from a machine where this file system is a local disk, and here flock is not to "
            "be trusted; run cdpo there, or, if nothing runs on this store any more, remove that file"
        )


def _names(path: Path, descriptor: int) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))
