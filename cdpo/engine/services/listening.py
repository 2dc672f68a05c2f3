"""Which process listens at a port of this machine, so that no answer is taken from another program's server."""

import contextlib
import os
import socket
from collections.abc import Iterable

#: a listening socket, in /proc/net/tcp
LISTEN = "0A"


def free_port() -> int:
    """A port of this machine that nobody listens at, at this moment."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def listens(pids: Iterable[int], port: int) -> bool | None:
    """Whether one of the processes listens at `port`; None where nobody does."""
    sockets = _listening(port)
    if not sockets:
        return None
    return any(link in sockets for pid in pids for link in _open_sockets(pid))


def _listening(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError), open(table, encoding="ascii") as stream:
            next(stream)
            for line in stream:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _open_sockets(pid: int) -> Iterable[str]:
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                yield os.readlink(f"{folder}/{name}")
