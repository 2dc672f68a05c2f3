"""Who executes on a store right now, so that `cdpo stop` finds an execution before the steps that it would start."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cdpo.engine.process import identity, is_alive
from cdpo.files import read_json, write_json
from cdpo.store import Store


@contextmanager
def registered(store: Store) -> Iterator[None]:
    """Be listed as an execution on `store`."""
    path = store.root / "executing" / f"{socket.gethostname()}-{os.getpid()}.json"
    write_json(path, {**identity(), "host": socket.gethostname()}, durable=False)
    try:
        yield
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
        if who["host"] != socket.gethostname():
            continue
        if is_alive(who):
            found.append(who)
        else:
            path.unlink(missing_ok=True)
    return found
