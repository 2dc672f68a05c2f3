"""Files that are whole or absent, whatever is killed when: what the test Hub keeps its state in.

    FOLDER/blobs/<sha256>                the content of every file of every commit
    FOLDER/parts/<sha256>/<number>       what has come of an upload in parts
    FOLDER/commits/<id>.json             a commit with its whole tree
    FOLDER/repos/<kind>/<namespace>/<name>.json, FOLDER/collections/<id>.json

A commit is made by three steps: its blobs, the file of the commit, and last the file of the repo, which names the
commit. Before the last one nobody sees it.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import threading
from pathlib import Path
from typing import Any

#: where the server writes the tracebacks of its own mistakes
ERRORS = "errors.txt"


class Store:
    def __init__(self, folder: Path):
        self.folder = folder
        #: held by whoever reads, decides and writes
        self.lock = threading.RLock()
        #: `full` set by the thread of a request: its writes find no room
        self.trouble = threading.local()
        for name in ("blobs", "parts", "commits", "repos", "collections"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Replace the file `name` by these bytes, atomically; OSError where there is no room."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with new.open("wb") as file:
                full = getattr(self.trouble, "full", False)
                file.write(data[: len(data) // 2] if full else data)
                file.flush()
                if full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1).encode())

    def read_json(self, name: str) -> Any:
        """The value, or None where there is no such file."""
        try:
            return json.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def put_blob(self, data: bytes) -> str:
        """Keep the bytes; their sha256."""
        sha = hashlib.sha256(data).hexdigest()
        if not self.blob(sha).exists():
            self.write(f"blobs/{sha}", data)
        return sha

    def blob(self, sha: str) -> Path:
        """Where the bytes of this sha256 lie, if they do; ValueError if it is none."""
        if not re.fullmatch("[0-9a-f]{64}", sha):
            raise ValueError(f"{sha!r} is no sha256")
        return self.folder / "blobs" / sha


def git_oid(data: bytes) -> str:
    """The name that git gives to a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha: str, size: int) -> bytes:
    """What git keeps in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n".encode()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def broken(folder: Path) -> list[str]:
    """What is not whole in the folder of a Hub, and whether its servers made mistakes: nothing, whoever was killed."""
    store = Store(folder)
    found = [ERRORS] if (folder / ERRORS).exists() else []
    for path in folder.glob("blobs/[!.]*"):
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
            found.append(path.name)
    commits = {path.stem: store.read_json(f"commits/{path.name}") for path in folder.glob("commits/[!.]*.json")}
    for name, commit in commits.items():
        if commit["parent"] and commit["parent"] not in commits:
            found.append(f"{name}: {commit['parent']}")
        found += [f"{name}: {path}" for path, each in commit["tree"].items() if not store.blob(each["sha256"]).exists()]
    for path in folder.glob("repos/*/*/[!.]*.json"):
        told = json.loads(path.read_bytes())
        refs = {**told["branches"], **told["tags"]}
        found += [f"{path.name}: {name}" for name, commit in refs.items() if commit not in commits]
    return found
