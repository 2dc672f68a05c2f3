"""Who executes on a store right now, so that `cdpo stop` finds an execution before the steps that it would start."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdpo.engine.process import identity, is_alive
from cdpo.errors import DamagedFile
from cdpo.files import read_json, write_json
from cdpo.store import Store


@contextmanager
def registered(store: Store) -> Iterator[Path]:
    """Be listed as an execution on `store`, in the file that is given."""
    living(store)
    path = store.root / "executing" / f"{socket.gethostname()}-{os.getpid()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    who = {**identity(), "host": socket.gethostname(), "folder": _folder(store)}
    write_json(path, who, durable=False)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def living(store: Store) -> list[dict[str, Any]]:
    """Identities of the executions on `store` that live on this machine; traces of dead ones are removed."""
    found = []
    for path in sorted((store.root / "executing").glob("[!.]*.json")):
        try:
            who = read_json(path)
        except FileNotFoundError:
            continue
        except DamagedFile:
            path.unlink(missing_ok=True)
            continue
        if who["host"] != socket.gethostname():
            continue
        # a trace that came with a copy of the store is of an execution on the original
        if is_alive(who) and who.get("folder") == _folder(store):
            found.append(who)
        else:
            path.unlink(missing_ok=True)
    return found


def _folder(store: Store) -> list[int]:
    """What the store's folder is whatever it is called, and no copy of it."""
    there = os.stat(store.root)
    return [there.st_dev, there.st_ino]
