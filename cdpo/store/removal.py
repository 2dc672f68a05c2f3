"""What can be removed from a store: first planned with sizes, then, if the user agrees, removed exactly so.

A planning function changes nothing and returns `Removal`s; `remove` carries out those that it is given.
"""

import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdpo.files import read_json, write_json
from cdpo.store import services
from cdpo.store.names import key_of, short
from cdpo.store.parts import part
from cdpo.store.publish import EVICTED, MANIFEST
from cdpo.store.store import Store

#: files of out/ that hold weights; scores, tokenizers and settings are small and stay
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class Removal:
    """One thing to remove."""

    #: "weights": those files of a finished step that hold weights; otherwise the whole of `path`
    kind: Literal["step", "weights", "work", "job", "service", "aside", "ref"]
    path: Path
    bytes: int
    why: str
    #: the step's key (12 digits at least); None for refs, for what jobs left and for what lies aside
    key: str | None = None


def plan_clear(store: Store, tag: str, also: Collection[str] = ()) -> list[Removal]:
    """The runs of `tag`, and of their steps (and the keys `also`) those that no run of another tag and no frozen plan
    of another tag's runs needs.

    A frozen plan's steps count as needed only for its runs under other tags.
    """
    refs = store.read_refs(tag)
    mine = {key for ref in refs for key in ref["steps"]} | {*also}
    others = {key for ref in store.read_refs() if ref["tag"] != tag for key in ref["steps"]}
    for path in store.plans.glob("[!.]*.json"):
        for run in read_json(path)["runs"]:
            if run["tag"] == tag:
                mine.update(run["steps"])
            else:
                others.update(run["steps"])
    found = [
        Removal("ref", path, path.stat().st_size, f"run {ref['name']} of tag {tag}")
        for ref in refs
        for path in [store.ref_path(tag, ref["name"])]
    ]
    alone = {key for key in mine - others if short(key) not in being_read(store)}
    steps = store.finished()
    for key in sorted(alone, key=lambda each: str(steps.get(short(each), ""))):
        folder = steps.get(short(key))
        if folder is not None:
            found.append(Removal("step", folder, size_of(folder), f"only tag {tag} needs it", key))
        if store.work(key).exists() and not store.is_locked(key):
            found.append(Removal("work", store.work(key), size_of(store.work(key)), "its unfinished attempts", key))
    return found


def plan_gc(store: Store, weights: Collection[str] = ()) -> list[Removal]:
    """What nobody needs: steps and work of no run and of no frozen plan, leftovers, and what was put aside.

    `weights` are keys of finished steps whose weights are to be evicted too. A step that runs now is never in it.
    """
    needed = {short(key) for ref in store.read_refs() for key in ref["steps"]}
    for path in store.plans.glob("[!.]*.json"):
        needed.update(short(step["key"]) for step in read_json(path)["steps"])
    steps, read = store.finished(), being_read(store)
    # parts of steps that are still to be joined
    said = {short(key): store.work(key) / "step.json" for key in store.working()}
    said |= {key: path / MANIFEST for key, path in steps.items()}
    missing = needed - steps.keys()
    parts = {key: shard for key, path in said.items() if key not in needed and (shard := part(path))}
    needed |= {key for key, shard in parts.items() if short(shard["of"]) in missing}
    found = [
        Removal("step", path, size_of(path), "no run and no plan has it", key)
        for key, path in sorted(steps.items(), key=lambda each: each[1])
        if key not in needed | read
    ]
    chosen = ({short(key) for key in weights} & needed) - read
    for key in sorted(chosen & steps.keys()):
        files = weight_files(store, steps[key])
        if files:
            size = sum(path.stat().st_size for path in files)
            found.append(Removal("weights", steps[key], size, "its weights can be made again", key))
    for key in store.working():
        if store.is_locked(key):
            continue
        if short(key) in steps:
            why = "left over from a finished step"
        elif short(key) not in needed:
            why = "unfinished, and no plan has it"
        else:
            continue
        found.append(Removal("work", store.work(key), size_of(store.work(key)), why, key))
    for path in sorted([*store.jobs.glob("*.json"), *store.jobs.glob("slurm/*")]):
        if short(path.stem) in steps:
            found.append(Removal("job", path, size_of(path), "what a batch job was told, and its logs; it is finished"))
    for room in services.rooms(store):
        if not room.is_kept() and not room.is_used():
            why = "the logs of a server that has ended"
            found.append(Removal("service", room.folder, size_of(room.folder), why))
    for path in sorted((store.root / "work").glob(".*-*")):
        if not Path(f"/proc/{path.name.split('-')[-1]}").exists():
            found.append(Removal("aside", path, size_of(path), "left over from a copy or a removal that was killed"))
    if store.aside.is_dir():
        for path in sorted(store.aside.glob("*/*")):
            found.append(Removal("aside", path, size_of(path), "put aside: damaged, redone, or evicted and made again"))
    return found


def remove(store: Store, removals: Iterable[Removal]) -> Iterator[Removal]:
    """Carry out `removals`, yielding each that was; one whose step is being made, or read, now is left alone."""
    for each in removals:
        if each.kind == "service":
            if services.Room(each.path).remove(lambda path: _delete(store, path)):
                yield each
            continue
        if each.key is None:
            _delete(store, each.path)
            yield each
            continue
        full = each.key if each.kind == "work" else store.full_key(each.path)
        lock = store.lock(full)
        if lock is None:
            continue
        if each.kind != "work" and short(full) in being_read(store):
            # since it was planned, while the user was asked
            store.unlock(full, lock)
            continue
        try:
            if each.kind == "weights":
                evict(store, each.path)
            else:
                _delete(store, each.path)
        finally:
            store.unlock(full, lock)
        yield each


def evict(store: Store, path: Path) -> int:
    """Remove the weights of a finished step, leaving the rest of it; returns the bytes freed. Hold the step's lock.

    The marker `evicted` is written first and names the files, so a kill in between leaves an evicted step, with some
    weights still there for the next call.
    """
    files = weight_files(store, path)
    if not files and not store.is_evicted(path):
        return 0
    names = [name for name in store.manifest(path)["outputs"] if name.endswith(WEIGHTS)]
    write_json(path / EVICTED, {"files": names, "time": round(time.time(), 3)})
    freed = 0
    for file in files:
        freed += file.stat().st_size
        file.unlink()
    return freed


def being_read(store: Store) -> set[str]:
    """Keys (12 digits) of the steps that a running step reads."""
    read: set[str] = set()
    for key in store.working():
        described = store.work(key) / "step.json"
        if store.is_locked(key) and described.exists():
            said = read_json(described)
            read.update(short(each["step"]) for each in said["planned"].values() if "step" in each)
            parts = (key_of(Path(out).parent.name) for out in said.get("inputs", {}).get("shards", []))
            read.update(part for part in parts if part is not None)
    return read


def weight_files(store: Store, path: Path) -> list[Path]:
    """The files of a finished step that hold weights and are there."""
    out = path / "out"
    return [out / name for name in store.manifest(path)["outputs"] if name.endswith(WEIGHTS) and (out / name).exists()]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if not path.is_dir():
        return path.lstat().st_size
    return sum((Path(room) / name).lstat().st_size for room, _, names in os.walk(path) for name in names)


def _delete(store: Store, path: Path) -> None:
    """Remove `path`; a step's folder leaves its place at once, so that half a step is never seen there."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        if path.parent != store.refs and not any(path.parent.iterdir()):
            path.parent.rmdir()
        return
    trash = store.root / "work" / f".trash-{time.time_ns()}-{os.getpid()}"
    trash.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, trash)
    shutil.rmtree(trash)
