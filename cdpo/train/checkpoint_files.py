"""Folders of checkpoints: which are whole, which one a training goes on from, which are removed.

    ckpt/checkpoint-120/     what cdpo/train/trl_resume.py writes, and beside it
        metrics.jsonl        the step's curves up to here
        samples.jsonl        the events of the kind `sample` up to here
        complete.json        written last, when all else is on the disk: without it the folder is a torn one

complete.json names every file with its size and its CRC-32, so that a file that was cut short or changed since is found
out before it is loaded.
"""

import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdpo.errors import DamagedFile
from cdpo.files import fsync_path, read_json, write_json

MARKER = "complete.json"
#: raised by hand when a checkpoint's layout changes
FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    #: optimiser steps taken
    step: int
    #: what complete.json says
    said: Mapping[str, Any]

    @property
    def best(self) -> int | None:
        """The optimiser step whose weights are the best so far, which a checkpoint of its own holds."""
        best: int | None = self.said["best"]
        return best


def folder_of(room: Path, step: int) -> Path:
    return room / f"checkpoint-{step}"


def seal(folder: Path, said: Mapping[str, Any]) -> None:
    """Flush a written checkpoint to disk and mark it as whole. Raises OSError where there is no room."""
    files = {}
    for path in sorted(_files(folder)):
        fsync_path(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "crc32": _crc32(path)}
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        fsync_path(inner)
    fsync_path(folder)
    fsync_path(folder.parent)
    write_json(folder / MARKER, {"format": FORMAT, **said, "files": files})


def choose(room: Path, usable: Callable[[Checkpoint], str | None]) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of `room` that is `usable` (which says why not), and why newer ones are not.

    One whose best checkpoint is missing is not usable either. A folder that its writer did not finish is no news.
    """
    why: list[str] = []
    for step, folder in sorted(_folders(room), reverse=True):
        if not (folder / MARKER).is_file():
            continue
        problem, found = _examine(folder, step)
        if found is not None and found.best not in (None, step):
            problem, _ = _examine(folder_of(room, found.best or 0), found.best or 0)
            problem = problem and f"the best checkpoint so far, of optimiser step {found.best}, is not whole: {problem}"
        if found is not None and problem is None:
            problem = usable(found)
        if found is not None and problem is None:
            return found, why
        why.append(f"the checkpoint of optimiser step {step} cannot be used: {problem}")
    return None, why


def keep(room: Path, kept: Checkpoint | None) -> None:
    """Remove all checkpoints of `room`, whole or not, but `kept` and the best one that goes with it."""
    steps = () if kept is None else (kept.step, kept.best)
    for step, folder in _folders(room):
        if step not in steps or folder != folder_of(room, step):
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a checkpoint, its marker first: what a kill leaves of it is a torn one."""
    if folder.is_dir() and not folder.is_symlink():
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def _examine(folder: Path, step: int) -> tuple[str | None, Checkpoint | None]:
    """What is wrong with a checkpoint, or the checkpoint."""
    try:
        said = read_json(folder / MARKER)
        if said["format"] != FORMAT:
            return f"it has layout {said['format']}, and this version of cdpo reads layout {FORMAT}", None
        if said["step"] != step:
            return f"it is of optimiser step {said['step']}", None
        for name, file in said["files"].items():
            path = folder / name
            if path.stat().st_size != file["size"] or _crc32(path) != file["crc32"]:
                return f"{name} is not what was written", None
        return None, Checkpoint(folder, step, said)
    except (OSError, DamagedFile, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}", None


def _folders(room: Path) -> Iterator[tuple[int, Path]]:
    for path in room.iterdir() if room.is_dir() else ():
        if named := _NAME.fullmatch(path.name):
            yield int(named[1]), path


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)


def _crc32(path: Path) -> int:
    found = 0
    with open(path, "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def size_of(folder: Path) -> int:
    """Bytes."""
    return sum(os.stat(path).st_size for path in _files(folder))
