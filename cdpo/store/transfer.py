"""Finished steps of another store become finished steps of this one, and so do the runs that they make up."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from cdpo.errors import UsageError
from cdpo.files import file_sha256, fsync_path
from cdpo.store import publish
from cdpo.store.names import short
from cdpo.store.store import Store


@dataclass
class Imported:
    #: folders of the steps that are new here
    added: list[Path] = field(default_factory=list)
    #: steps that were here already
    present: int = 0
    #: runs (tag, name) that are new here
    runs: list[tuple[str, str]] = field(default_factory=list)
    #: folder there -> why it was not taken
    refused: dict[Path, str] = field(default_factory=dict)


def import_from(store: Store, other: Store) -> Imported:
    """Copy every finished step of `other` that `store` does not have, checking each copy against its manifest.

    Each appears whole or not at all, and a second call goes on where the first was stopped. Evicted and damaged steps
    are refused. Runs whose steps are all finished here then are added too, but none replaces a run of the same name.
    Raises UsageError where `other` is no store.
    """
    if not other.steps.is_dir():
        raise UsageError(f"{other.root}: no cdpo store here (a store has a folder `steps`)")
    done = Imported()
    mine = store.finished()
    for key, source in sorted(other.finished().items(), key=lambda each: each[1]):
        if key in mine and not store.is_evicted(mine[key]):
            done.present += 1
            continue
        wrong = "its weights were evicted" if other.is_evicted(source) else other.intact(source)
        if wrong is None:
            copy = store.root / "work" / f".import-{key}-{os.getpid()}"
            shutil.rmtree(copy, ignore_errors=True)
            try:
                wrong = _copy(store, source, copy)
                if wrong is None:
                    done.added.append(publish.install(store, copy))
            finally:
                shutil.rmtree(copy, ignore_errors=True)
        if wrong is not None:
            done.refused[source] = wrong
    mine = store.finished()
    for ref in other.read_refs():
        whole = all(short(key) in mine for key in ref["steps"])
        if whole and not store.ref_path(ref["tag"], ref["name"]).exists():
            store.write_ref(ref["tag"], ref["name"], ref)
            done.runs.append((ref["tag"], ref["name"]))
    return done


def _copy(store: Store, source: Path, copy: Path) -> str | None:
    """Copy one step and flush it to disk; says what is wrong with the copy, if anything."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, copy)
    for room, _, names in os.walk(copy):
        for name in names:
            fsync_path(Path(room) / name)
        fsync_path(Path(room))
    for name, wanted in store.manifest(copy)["outputs"].items():
        if file_sha256(copy / "out" / name) != wanted["sha256"]:
            return f"{source}/out/{name}: its content is not the one that was published"
    return None
