"""What was worked out of a store's rows, kept so that rows are read once. `index.sqlite` may be deleted.

Every entry's key names all that it was made from, and of files how they look: a step that is made again, after `redo`,
has its old key and may have other rows. The files stay the truth: who cannot write the index works without one.
"""

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cdpo.store import Store
from cdpo.store.filesystem import has_flock

FILE = "index.sqlite"
#: seconds to wait for another writer; what could not be kept is worked out again next time
PATIENCE = 2.0
#: of a finished step's folder: what results are made from
LOOKED_AT = ("/manifest.json", "/out", "/out/scores.parquet")
_MAKE = "CREATE TABLE IF NOT EXISTS kept (kind TEXT, key TEXT, value TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID"


class Index:
    """`remember(kind, key, make)` gives what was kept under that key, or makes it and keeps it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: dict[str, dict[str, str]] = {}
        self._new: dict[tuple[str, str], str] = {}
        self._used: set[tuple[str, str]] = set()
        #: another release's statistics are not this one's
        self._code = _code()

    def remember(self, kind: str, key: str, make: Callable[[], Any]) -> Any:
        """`make()` must give JSON, and nothing that `key` does not decide."""
        key = f"{self._code} {key}"
        self._used.add((kind, key))
        if kind not in self._kept:
            self._kept[kind] = self._load("SELECT key, value FROM kept WHERE kind = ?", kind)
        text = self._kept[kind].get(key)
        if text is not None:
            return json.loads(text)
        value = make()
        self._kept[kind][key] = self._new[kind, key] = json.dumps(value)
        return value

    def look(self, kind: str, keys: Sequence[str]) -> list[Any] | None:
        """What is kept under each of some keys, without reading all of their kind; None where one is not."""
        full = [f"{self._code} {key}" for key in keys]
        marks = ", ".join("?" * len(full))
        found = self._load(f"SELECT key, value FROM kept WHERE kind = ? AND key IN ({marks})", kind, *full)
        return [json.loads(found[key]) for key in full] if len(found) == len(full) else None

    def keep(self, kind: str, key: str, value: Any) -> None:
        key = f"{self._code} {key}"
        self._used.add((kind, key))
        self._new[kind, key] = json.dumps(value)

    def save(self, forget: Sequence[str] = (), only: tuple[str, str] | None = None) -> None:
        """Write what is new; of the kinds in `forget`, drop all that was not asked for since the index was opened, and
        of the kind `only[0]` all whose keys begin with something else than `only[1]`."""
        if not self._new:
            return
        new = [(kind, key, value) for (kind, key), value in self._new.items()]

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(_MAKE)
            connection.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", new)
            for kind in forget:
                there = [key for (key,) in connection.execute("SELECT key FROM kept WHERE kind = ?", (kind,))]
                gone = [(kind, key) for key in there if (kind, key) not in self._used]
                connection.executemany("DELETE FROM kept WHERE kind = ? AND key = ?", gone)
            if only is not None:
                start = f"{self._code} {only[1]}"
                given = (only[0], len(start), start)
                connection.execute("DELETE FROM kept WHERE kind = ? AND substr(key, 1, ?) != ?", given)
            connection.commit()

        self._with(write)
        self._new.clear()

    def _load(self, query: str, *given: str) -> dict[str, str]:
        if not self.path.exists():
            return {}
        found: dict[str, str] = {}
        self._with(lambda connection: found.update(connection.execute(query, given)))
        return found

    def _with(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do something with the file; what fails is left undone, and a file that is no index is begun anew."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=PATIENCE)) as connection:
                work(connection)
        except sqlite3.OperationalError:
            return  # read-only, locked by others, no room, or from another release: it is only slower without
        except sqlite3.DatabaseError:
            with contextlib.suppress(OSError):
                self.path.unlink()


def index_of(store: Store) -> Index:
    """The index in the store; where the store cannot be written, or locks of its file system cannot be trusted, one in
    the user's cache."""
    if os.access(store.root, os.W_OK) and has_flock(store.root):
        return Index(store.root / FILE)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cdpo"
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    return Index(home / f"{hashlib.sha256(os.fsencode(store.root)).hexdigest()[:16]}-{FILE}")


def _code() -> str:
    """Changes with the code that works things out, without reading it."""
    import cdpo
    import cdpo.pipelines

    rooms = [Path(room) / name for room in cdpo.__path__ for name in ("report", "stats")]
    rooms += [Path(room) for room in cdpo.pipelines.__path__]
    stamps = sorted(
        (entry.name, entry.stat().st_mtime_ns, entry.stat().st_size)
        for room in rooms
        for entry in os.scandir(room)
        if entry.name.endswith(".py")
    )
    return hashlib.sha256(repr(stamps).encode()).hexdigest()[:12]


def stamp_of(store: Store) -> str:
    """Changes when anything does that results are made from: runs, finished steps and their scores, failures."""
    digest = hashlib.sha256()
    # thousands of files: names and one look at each, nothing else
    for room, parts in ((os.fspath(store.refs), ("",)), (os.fspath(store.steps), LOOKED_AT)):
        for below in _names(room):
            for name in _names(f"{room}/{below}"):
                for part in parts:
                    path = f"{room}/{below}/{name}{part}"
                    digest.update(f"{path} {look_of(path)};".encode())
    for key in sorted(store.working()):
        digest.update(f"{key} {(store.work(key) / 'failure.json').exists()};".encode())
    return digest.hexdigest()


def _names(room: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(room) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def look_of(path: str | Path) -> str:
    """What tells a file from itself after it was written again, and from another in its place; `-` for none."""
    try:
        found = os.stat(path)
    except OSError:
        return "-"
    return f"{found.st_mtime_ns} {found.st_size} {found.st_ino}"
