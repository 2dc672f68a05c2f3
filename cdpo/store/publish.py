"""How a finished step enters the store: whole, on disk, and once.

A step's files are gathered in `work/<key>/publish/`. The manifest is written there when every file is on disk under its
final content; from then on the step is finished, and what remains are two renames that anyone may complete
(`complete`): `out/` into the gathered folder, and that folder to its place in `steps/`. A kill at any point
loses either nothing or one unpublished result, and never leaves a part of a step in `steps/`.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.errors import StepError
from cdpo.files import file_sha256, fsync_path, read_json, write_json
from cdpo.store import locks
from cdpo.store.names import folder_name, short

if TYPE_CHECKING:
    from cdpo.store.store import Store

STAGING = "publish"
MANIFEST = "manifest.json"
EVICTED = "evicted"
#: what is published beside out/, where the step has it
BESIDE = ("step.json", "metrics.jsonl", "events.jsonl", "log.txt")


def stage(work: Path, manifest: Mapping[str, Any], log: Path | None = None) -> None:
    """Gather `work`'s results in its staging folder: a finished step from the moment that its manifest is written."""
    out, staging = work / "out", work / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    outputs = {}
    for path in sorted(_files(out)):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        outputs[path.relative_to(out).as_posix()] = {"size": size, "sha256": file_sha256(path)}
    for folder in [out, *(path for path in out.rglob("*") if path.is_dir())]:
        fsync_path(folder)
    for name in BESIDE:
        source = log if name == "log.txt" else work / name
        if source is not None and source.exists():
            shutil.copyfile(source, staging / name)
            fsync_path(staging / name)
    write_json(staging / MANIFEST, {**manifest, "outputs": outputs})


def is_staged(work: Path) -> bool:
    """Whether an earlier attempt finished this step, and was killed before it could move it to its place."""
    return (work / STAGING / MANIFEST).exists()


def complete(store: "Store", work: Path) -> Path:
    """Move a staged step to its place, remove its work folder, and return the place.

    Where another writer came first, its step stays and this one is dropped; should their outputs differ, that is noted
    in the store's events.
    """
    staging = work / STAGING
    if (work / "out").exists() and not (staging / "out").exists():
        os.rename(work / "out", staging / "out")
        fsync_path(staging)
    place = install(store, staging)
    shutil.rmtree(work, ignore_errors=True)
    return place


def install(store: "Store", folder: Path) -> Path:
    """Rename a whole step folder into `steps/`; what is there already is kept, unless its weights were evicted."""
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    key, pipeline = manifest["key"], manifest["pipeline"]
    room = store.steps / pipeline
    room.mkdir(parents=True, exist_ok=True)
    lock = locks.acquire(store.locks / "publish.lock", wait=True)
    assert lock is not None
    try:
        there: Path | None = store.find(key, pipeline)
        if there is not None and not (there / EVICTED).exists():
            _compare(store, manifest, there)
            shutil.rmtree(folder, ignore_errors=True)
            return there
        place: Path = room / folder_name(manifest["name"], key)
        if there is not None:
            store.move_aside(there, "evicted")
        os.rename(folder, place)
        fsync_path(room)
        fsync_path(store.steps)
        return place
    finally:
        lock.release(remove=True)


def _compare(store: "Store", mine: Mapping[str, Any], there: Path) -> None:
    theirs = read_json(there / MANIFEST)
    if theirs["outputs"] != mine["outputs"]:
        names = sorted(
            name
            for name in {*theirs["outputs"], *mine["outputs"]}
            if theirs["outputs"].get(name) != mine["outputs"].get(name)
        )
        label = f"{mine['pipeline']}/{mine['name']}-{short(mine['key'])}"
        store.append_event(
            {"event": "note", "key": mine["key"], "text": f"{label}: two writers differ in {', '.join(names)}"}
        )


def _files(out: Path) -> list[Path]:
    found = []
    for path in out.rglob("*"):
        if path.is_symlink():
            raise StepError(f"{path}: a step may leave files and folders only, and this is a symbolic link")
        if path.is_file():
            found.append(path)
    return found
