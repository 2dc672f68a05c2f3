"""The processes of a step wherever they went: sessions of their own, daemons, ranks whose launcher is gone.

A worker, or the keeper of a service, is started with a mark in its environment, which whatever it starts inherits;
/proc tells who carries it. (A process that wipes its environment and leaves its session escapes.)
"""

import os
import signal
import time

from cdpo.engine.process import Identity, identity, is_alive, send
from cdpo.engine.watch import proc
from cdpo.store import Store, services

#: environment variable that holds the mark
MARK = "CDPO_STEP"


def store_mark(store: Store) -> str:
    """How the marks of all steps of `store` begin: by what its folder is, whatever it is called, and no copy of it."""
    there = os.stat(store.root)
    return f"{there.st_dev}:{there.st_ino}/"


def new_mark(store: Store, key: str) -> str:
    """A mark for one attempt at the step `key`."""
    return f"{store_mark(store)}{key}/{time.time_ns()}"


def key_of(mark: str) -> str:
    """The key of the step that a mark was made for; of a service's, its name after SERVICE."""
    return mark.split("/")[1]


def mark_of(pid: int) -> str | None:
    """The mark of a process; None where it has none, has ended, or is another user's."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as stream:
            environment = stream.read()
    except OSError:
        return None
    begin = f"\0{MARK}=".encode()
    _, found, rest = (b"\0" + environment).partition(begin)
    return rest.split(b"\0", 1)[0].decode() if found else None


def marked(beginning: str) -> dict[str, list[Identity]]:
    """The living processes of this machine whose mark begins so, by their mark."""
    found: dict[str, list[Identity]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        mark = mark_of(int(entry))
        if mark is None or not mark.startswith(beginning):
            continue
        try:
            who = identity(int(entry))
        except ProcessLookupError:
            continue
        # the pid may have passed to another process since its environment was read
        if mark_of(who["pid"]) == mark:
            found.setdefault(mark, []).append(who)
    return found


def leftovers(store: Store) -> list[str]:
    """Marks of attempts at steps of `store`, and of keepers, that are over, and of which something still lives."""
    if not store.root.exists():
        return []
    return [mark for mark in marked(store_mark(store)) if _is_over(store, mark)]


def _is_over(store: Store, mark: str) -> bool:
    key = key_of(mark)
    if key.startswith(services.SERVICE):
        return services.is_over(store, mark)
    # An attempt's worker has the lock from before its start to its end ...
    if not store.is_locked(key):
        return True
    # ... but what it started may have it too. Whoever starts a worker removes the last one's proc.json first, so what
    # is found there is of this attempt or of a later one.
    said = proc(store.work(key))
    return said is not None and (said.get("mark") != mark or not is_alive(said))


class Tree:
    """The processes whose mark begins with `mark`: those of one attempt, or of a whole store."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        #: since when they are being killed (time.monotonic)
        self.since: float | None = None
        #: what was not gone when last looked at
        self.remains: list[Identity] = []

    def living(self) -> list[Identity]:
        return [who for several in marked(self.mark).values() for who in several]

    def kill(self) -> list[Identity]:
        """Kill them all; returns those that were not gone when looked at. To be called until there are none.

        Another look is needed even where all were killed: one may have started another meanwhile.
        """
        found = self.living()
        for who in found:
            send(who, signal.SIGKILL)
        # A process on its way out has no environment any more, while the driver still takes back its memory.
        leaving = [who for who in self.remains if who not in found and is_alive(who)]
        self.remains = found + leaving
        if self.remains and self.since is None:
            self.since = time.monotonic()
        return list(self.remains)
