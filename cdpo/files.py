"""Files that are whole or absent: written beside their place, flushed to disk, then renamed into it."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, durable: bool = True) -> None:
    """Write `text` to `path` atomically; a reader sees the old file or the new one, never a part.

    With `durable` it also survives a power cut: the file and its folder are flushed to disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "w", encoding="utf-8") as stream:
            stream.write(text)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(path.parent)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", durable)


def read_json(path: Path) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def append_json(path: Path, value: Any) -> None:
    """Append one line. One `write` of a short line to a file opened for appending is not torn by other writers."""
    line = json.dumps(value, ensure_ascii=False) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> Iterator[Any]:
    """The whole lines of a JSON-lines file; a last line that a killed writer left unfinished is passed over."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        if line:
            yield json.loads(line)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
