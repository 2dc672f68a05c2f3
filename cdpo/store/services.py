"""The folder of one service, `services/<name>` of a store: who keeps it, who uses it, and what its keeper says.

keeper.lock    held by its keeper (cdpo/engine/services/keeper.py), from before that starts to its end
users.lock     held, shared, by every worker whose step it serves
service.json   what its keeper is told
state.json     what its keeper last said; of another keeper where that is gone, so that `is_kept` is asked first
keeper.log, server-<n>.log
model/         what the server reads: links to the model's files, or what prepare.py made
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.store import locks
from cdpo.store.locks import Lock
from cdpo.store.store import Store

#: how the marks of a service's processes call it, where those of a step have its key (cdpo/engine/trees.py)
SERVICE = "service-"


class Room:
    """`services/<name>` of a store; making one writes nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.name = self.folder.name

    @property
    def store(self) -> Store:
        return Store(self.folder.parent.parent)

    @property
    def log(self) -> Path:
        return self.folder / "keeper.log"

    def lock(self) -> Lock | None:
        """The keeper's lock; None where somebody keeps the service."""
        return self._made(lambda: locks.acquire(self.folder / "keeper.lock"))

    def is_kept(self) -> bool:
        return locks.is_held(self.folder / "keeper.lock")

    def use(self) -> Lock:
        """A share in the service, as long as this process lives, or until it is given up."""
        lock = self._made(lambda: locks.acquire(self.folder / "users.lock", shared=True, wait=True))
        assert lock is not None
        return lock

    def is_used(self) -> bool:
        return locks.is_held(self.folder / "users.lock")

    def state(self) -> dict[str, Any] | None:
        """What the keeper last said (see keeper.py); None where it has said nothing yet."""
        try:
            found: dict[str, Any] = read_json(self.folder / "state.json")
        except (FileNotFoundError, DamagedFile):
            return None
        return found

    def forget_state(self) -> None:
        (self.folder / "state.json").unlink(missing_ok=True)

    def remove(self, delete: Callable[[Path], None]) -> bool:
        """Have `delete` remove the folder, unless the service is kept or used; False where it is."""
        held: list[Lock] = []
        try:
            for name in ("users.lock", "keeper.lock"):
                lock = locks.acquire(self.folder / name) if self.folder.exists() else None
                if lock is None:
                    return False
                held.append(lock)
            delete(self.folder)
            return True
        finally:
            for lock in held:
                lock.release()

    def _made(self, take: Callable[[], Lock | None]) -> Lock | None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            # `cdpo gc` may remove the folder of a service that nobody uses at this very moment
            with contextlib.suppress(FileNotFoundError):
                return take()


def rooms(store: Store) -> list[Room]:
    """All services of a store, those that nobody keeps any more too."""
    try:
        names = sorted(os.listdir(store.root / "services"))
    except FileNotFoundError:
        return []
    return [Room(store.root / "services" / name) for name in names if not name.startswith(".")]


def is_over(store: Store, mark: str) -> bool:
    """Whether the keeper whose service a process with this mark belongs to has ended."""
    room = Room(store.root / "services" / mark.split("/")[1].removeprefix(SERVICE))
    if not room.is_kept():
        return True
    # a keeper has its lock from before its start, and says who it is later
    said = room.state()
    return said is not None and not mark.startswith(said["mark"])
