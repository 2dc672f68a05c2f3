"""The store: finished steps, work in progress, and which steps make up a run. The files are the truth.

plans/<name>.json                          frozen plans
preflight/<name>.json                      what `cdpo prep` saw of the data
steps/<PIPELINE>/<name>-<key12>/           immutable; exists == complete
work/<key>/                                in progress, or failed
refs/<tag>/<run>.json                      which steps make up a run
locks/                                     held by whoever makes a step; empty when nothing runs
services/<name>/                           servers that steps need; see cdpo/store/services.py
aside/                                     steps that were damaged or redone, kept until `cdpo gc`
events.jsonl                               what happened, append-only
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cdpo.errors import CdpoError, DamagedFile
from cdpo.files import append_json, file_sha256, read_json, write_json
from cdpo.store import claims, locks, publish
from cdpo.store.locks import Lock
from cdpo.store.names import folder_name, key_of, safe_name, short

#: what every manifest has
MANIFEST_FIELDS = frozenset(("key", "pipeline", "name", "seconds", "outputs"))


class Store:
    """A folder of steps. Opening one makes nothing; folders appear when something is written."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.steps = self.root / "steps"
        self.plans = self.root / "plans"
        self.refs = self.root / "refs"
        self.aside = self.root / "aside"
        #: what batch systems were told of steps
        self.jobs = self.root / "jobs"
        self.events = self.root / "events.jsonl"

    @property
    def locks(self) -> Path:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # finished steps

    def finished(self) -> dict[str, Path]:
        """Every finished step: the first 12 digits of its key -> its folder. Evicted ones are among them."""
        return {key: path for pipeline in _folders(self.steps) for key, path in _keyed(pipeline)}

    def find(self, key: str, pipeline: str | None = None) -> Path | None:
        """The folder of one finished step (the key may be cut to 12 digits), or None."""
        rooms = _folders(self.steps) if pipeline is None else [self.steps / pipeline]
        end = f"-{short(key)}"
        for room in rooms:
            # every step that starts asks, and there may be 10,000 others: names alone, and most by their ends
            for name in _names(room):
                if name.endswith(end) and key_of(name) is not None:
                    return room / name
        return None

    def place(self, pipeline: str, name: str, key: str) -> Path:
        """Where the finished step will be, if nobody finished it under another name before."""
        return self.steps / pipeline / folder_name(name, key)

    def look(self, pipeline: str, name: str, key: str) -> Path | None:
        """`find`, quick where the step has the name that is expected."""
        place = self.place(pipeline, name, key)
        return place if place.exists() else self.find(key, pipeline)

    def manifest(self, path: Path) -> dict[str, Any]:
        """The manifest of a finished step's folder. Raises DamagedFile where it is none."""
        try:
            found = read_json(path / publish.MANIFEST)
        except DamagedFile:
            found = None
        if not isinstance(found, dict) or not found.keys() >= MANIFEST_FIELDS:
            raise DamagedFile(
                f"{path / publish.MANIFEST}: damaged, it cannot be read as one; `cdpo execute` makes the step again"
            )
        return found

    def full_key(self, path: Path) -> str:
        """The whole key of a finished step; its step.json is asked where the manifest is damaged."""
        for name in (publish.MANIFEST, "step.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return str(read_json(path / name)["key"])
        raise CdpoError(f"{path}: neither its manifest nor its step.json can be read; remove the folder by hand")

    def is_evicted(self, path: Path) -> bool:
        return (path / publish.EVICTED).exists()

    def intact(self, path: Path, manifest: Mapping[str, Any] | None = None) -> str | None:
        """None where all that a finished step left is there in its size; otherwise what is missing or changed.

        Contents are not read.
        """
        try:
            outputs = (manifest or self.manifest(path))["outputs"]
        except DamagedFile as error:
            return str(error)
        except (FileNotFoundError, NotADirectoryError) as error:
            return f"{path / publish.MANIFEST}: cannot be read ({error})"
        gone: set[str] | None = None
        for name, wanted in outputs.items():
            try:
                size = os.stat(f"{path}/out/{name}").st_size
            except (FileNotFoundError, NotADirectoryError):
                if gone is None:
                    gone = set(read_json(path / publish.EVICTED)["files"]) if self.is_evicted(path) else set()
                if name in gone:
                    continue
                return f"{path}/out/{name}: missing"
            if size != wanted["size"]:
                return f"{path}/out/{name}: {size} bytes, not the {wanted['size']} that were published"
        return None

    def altered(self, path: Path) -> str | None:
        """As `intact`, and every byte is read: also what differs from what was published and has its size."""
        wrong = self.intact(path)
        if wrong is not None:
            return wrong
        for name, wanted in self.manifest(path)["outputs"].items():
            file = path / "out" / name
            if file.exists() and file_sha256(file) != wanted["sha256"]:
                return f"{file}: its contents are not those that were published"
        return None

    def past_seconds(self, pipeline: str, most: int = 20) -> list[float]:
        """How long the latest finished steps of a pipeline took, newest first, at most `most` of them."""
        entries = sorted(_keyed(self.steps / pipeline), key=lambda each: -each[1].stat().st_mtime)[:most]
        found = []
        for _, path in entries:
            # a damaged step tells nothing here; whoever needs it is told by `intact`
            with contextlib.suppress(OSError, ValueError, KeyError):
                found.append(float(self.manifest(path)["seconds"]))
        return found

    # publishing

    def publish(self, key: str, pipeline: str, name: str, work: Path, manifest: Mapping[str, Any]) -> Path:
        """Make `work`'s `out/` a finished step; returns its folder. See cdpo/store/publish.py."""
        publish.stage(work, {"key": key, "pipeline": pipeline, "name": name, **manifest}, work / "log.txt")
        return publish.complete(self, work)

    def check_rooms(self) -> None:
        """Raise CdpoError where steps could be made and not be published, for want of one file system for all."""
        for room in (self.root / "work", self.steps, *_folders(self.steps)):
            if room.exists() and os.stat(room).st_dev != os.stat(self.root).st_dev:
                raise CdpoError(
                    f"{room}: on another file system than {self.root}, and finished steps are published by renaming; "
                    "put the whole store on one, or name another (`--store`)"
                )

    # work in progress

    def work(self, key: str) -> Path:
        return self.root / "work" / key

    def working(self) -> list[str]:
        """Keys that have a work folder: running, interrupted or failed."""
        return [path.name for path in _folders(self.root / "work") if not path.name.startswith(".")]

    def locked(self) -> set[str]:
        """Keys whose lock somebody holds, or was killed with."""
        with contextlib.suppress(FileNotFoundError):
            return {name.removesuffix(".lock") for name in os.listdir(self.root / "locks") if name.endswith(".lock")}
        return set()

    def lock_path(self, key: str) -> Path:
        """Held by the worker that makes the step."""
        return self.root / "locks" / f"{key}.lock"

    def alive_path(self, key: str) -> Path:
        """Held, shared, by every rank of a step of several processes."""
        return self.root / "locks" / f"{key}.alive"

    def is_locked(self, key: str) -> bool:
        """Whether any process of the step lives."""
        return locks.is_held(self.lock_path(key)) or locks.is_held(self.alive_path(key))

    def lock(self, key: str) -> Lock | None:
        """Take the step for this process; None where any process of it lives. Give back with `unlock`."""
        self.locks  # noqa: B018  (makes the folder)
        lock = locks.acquire(self.lock_path(key))
        if lock is not None and locks.is_held(self.alive_path(key)):
            lock.release()
            return None
        return lock

    def unlock(self, key: str, lock: Lock) -> None:
        """Give up a lock and remove its files, where this process alone holds it."""
        try:
            locks.forget(self.alive_path(key))
        finally:
            lock.release(remove=True)

    def lock_told(self, key: str) -> str:
        """Who holds the step, as far as that can be said, and how it is freed where that has ended."""
        path = self.lock_path(key)
        return locks.told(path if locks.is_held(path) else self.alive_path(key))

    def claiming_jobs(self, key: str) -> set[str]:
        """The batch system's jobs that claim the step; empty where it is locked otherwise, or not at all."""
        return claims.jobs(self.lock_path(key)) | claims.jobs(self.alive_path(key))

    def release_claim(self, key: str, job: str, why: str) -> bool:
        """Free a step of the claims of `job`, which the batch system says is over; False where it has none.

        A job that was started in its stead meanwhile keeps its own.
        """
        freed = [path for path in (self.lock_path(key), self.alive_path(key)) if claims.release(path, job)]
        if freed:
            self.append_event({"event": "note", "key": key, "text": f"freed from job {job}: {why}"})
        return bool(freed)

    # taking steps out of sight

    def discard(self, key: str) -> Path:
        """Move a finished step aside, so that it is made again; returns where it went.

        Raises CdpoError where there is no such step, or where it is being made right now.
        """
        path = self.find(key)
        if path is None:
            raise CdpoError(f"{self.steps}: no finished step {short(key)}; `cdpo status` lists them")
        full = self.full_key(path)
        lock = self.lock(full)
        if lock is None:
            raise CdpoError(f"{path}: this step is being made right now; wait, or `cdpo stop`")
        try:
            return self.move_aside(path, "redone")
        finally:
            self.unlock(full, lock)

    def move_aside(self, path: Path, why: str) -> Path:
        """Move a step's folder under `aside/`. The caller holds the step's lock."""
        room = self.aside / path.parent.name
        room.mkdir(parents=True, exist_ok=True)
        place = room / f"{path.name}~{why}-{time.time_ns()}"
        os.rename(path, place)
        return place

    # runs

    def write_ref(self, tag: str, run: str, value: Mapping[str, Any]) -> Path:
        """Record a run: `value["steps"]` are the keys that make it up; `tag` and `name` are added."""
        path = self.ref_path(tag, run)
        text = {**value, "tag": tag, "name": run}
        with contextlib.suppress(FileNotFoundError, DamagedFile):
            if read_json(path) == text:
                return path
        write_json(path, text)
        return path

    def read_refs(self, tag: str | None = None, *, whole: bool = True) -> list[dict[str, Any]]:
        """The runs of one tag, or of all, by tag and name; their tag and name are inside.

        Raises DamagedFile; without `whole` such a run is left out, for who will write it again.
        """
        rooms = _folders(self.refs) if tag is None else [self.refs / safe_name(tag)]
        found = []
        for path in (path for room in rooms for path in sorted(room.glob("[!.]*.json"))):
            try:
                found.append(read_json(path))
            except DamagedFile as error:
                if whole:
                    raise DamagedFile(f"{error}; `cdpo prep` writes it again, for the runs of its tasks file") from None
        return sorted(found, key=lambda each: (each["tag"], each["name"]))

    def tags(self) -> list[str]:
        """The tags that there are runs under, sorted; read off one run of each."""
        found = set()
        for room in _folders(self.refs):
            for name in sorted(_names(room)):
                if name.endswith(".json") and not name.startswith("."):
                    with contextlib.suppress(OSError, DamagedFile, KeyError, TypeError):
                        found.add(str(read_json(room / name)["tag"]))
                        break
        return sorted(found)

    def remove_ref(self, tag: str, run: str) -> None:
        path = self.ref_path(tag, run)
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()

    def ref_path(self, tag: str, run: str) -> Path:
        """Where a run is recorded."""
        return self.refs / safe_name(tag) / f"{safe_name(run)}.json"

    # events

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add one line to the store's history; `event["event"]` names its kind."""
        self.root.mkdir(parents=True, exist_ok=True)
        append_json(self.events, {"time": round(time.time(), 3), **event})


def _folders(room: Path) -> list[Path]:
    try:
        with os.scandir(room) as entries:
            return sorted(room / entry.name for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []


def _keyed(room: Path) -> Iterator[tuple[str, Path]]:
    for name in _names(room):
        key = key_of(name)
        if key is not None:
            yield key, room / name


def _names(room: Path) -> list[str]:
    try:
        return os.listdir(room)
    except FileNotFoundError:
        return []
