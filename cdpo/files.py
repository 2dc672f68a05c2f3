"""Files that are whole or absent: written beside their place, flushed to disk, then renamed into it."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cdpo.errors import DamagedFile


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
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(beside, "w", encoding="utf-8") as stream:
            stream.write(text)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        # a full disk is told without a name
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(path.parent)


def write_json(path: Path, value: Any, durable: bool = True) -> None:
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", durable)


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises DamagedFile, which names the file, where it is not JSON."""
    with open(path, encoding="utf-8") as stream:
        try:
            return json.load(stream)
        except ValueError as error:
            raise DamagedFile(f"{path}: damaged, it cannot be read ({error})") from None


def append_json(path: Path, value: Any) -> None:
    """Append one line. One `write` of a short line to a file opened for appending is not torn by other writers.

    Raises OSError where the disk has no room for the whole line, and takes back the part that it took.
    """
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        append_whole(descriptor, line)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), str(path)) from None
    finally:
        os.close(descriptor)


def append_whole(descriptor: int, line: bytes) -> None:
    """Write `line` to a file opened for appending, or nothing of it: a full disk takes a part without complaint."""
    written = os.write(descriptor, line)
    if written == len(line):
        return
    end = os.lseek(descriptor, 0, os.SEEK_CUR)
    if os.fstat(descriptor).st_size == end:
        os.ftruncate(descriptor, end - written)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_json_lines(path: Path) -> Iterator[Any]:
    """The whole lines of a JSON-lines file; a last line that a killed writer left unfinished is passed over."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        if line:
            yield json.loads(line)


@contextlib.contextmanager
def reading_parquet(path: Path) -> Iterator[Any]:
    """The pyarrow ParquetFile of `path`. What is no whole parquet file, as it is opened or as rows are read, raises
    DamagedFile."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedFile(f"{path}: cannot be read ({error}); `cdpo redo` has its step made again") from None


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
