"""One server process of a service, from its start until nothing of it is left."""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdpo import trust
from cdpo.engine import trees
from cdpo.engine.gpus.nvml import Gpu
from cdpo.engine.process import die_with_parent
from cdpo.engine.services import commands, prepare, probe
from cdpo.engine.services.listening import free_port, listens
from cdpo.engine.watch import tail
from cdpo.store.services import Room

#: bytes of a log; of a longer one the end is kept
MOST_LOG, KEPT_LOG = 64 << 20, 1 << 20
#: lines of the end of a log that are told
LAST = 6
#: an exception as Python writes it, after what loggers put before it
ERROR = re.compile(r"(?:^|\] )((?:\w+\.)*\w*(?:Error|Exception): .+)")


class Server:
    """The process is started here. Raises OSError where there is no such program."""

    def __init__(self, room: Room, keep: Mapping[str, Any], gpus: list[Gpu], mark: str, number: int) -> None:
        self.keep, self.room = keep, room
        self.port = free_port()
        self.log = room.folder / f"server-{number}.log"
        self.tree = trees.Tree(mark)
        self.title = commands.title(keep)
        self.began = time.monotonic()
        words = commands.command(keep, room.folder, self.port)
        environment = {**os.environ, **commands.environment(keep, gpus), trees.MARK: mark}
        if keep.get("trusted"):
            # no other process reads or writes the copies that it makes of the model's own code
            environment[trust.MODULES] = str(room.folder / prepare.MODULES / "server")
        keeper = os.getpid()

        def bind() -> None:
            die_with_parent()
            if os.getppid() != keeper:
                # killed before the kernel knew that the server dies with it
                os._exit(1)

        with open(self.log, "wb") as stream:
            stream.write(f"$ {' '.join(words)}\n".encode())
        with open(self.log, "ab") as stream:
            self.process = subprocess.Popen(
                words,
                cwd=commands.working_folder(keep, room.folder),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=bind,
                env=environment,
            )

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"

    def ended(self) -> str | None:
        """How it ended, in words; None as long as it runs."""
        code = self.process.poll()
        if code is None:
            return None
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return f"{self.title} ended with {how}"

    def model(self) -> str | None:
        """What it calls its model, once it can be asked; None before that. Raises probe.Unfit."""
        # another program's server may answer there, with any model
        if not listens((who["pid"] for who in self.tree.living()), self.port):
            return None
        try:
            if not probe.is_well(self.root, self.keep["api_key"]):
                return None
            names = commands.names(self.keep, self.room.folder)
            if self.keep["server"] == "transformers":
                # it lists what is in its cache, and refuses requests for any other model than its own
                return names[0]
            found = probe.listed(self.url, self.keep["api_key"])
        except OSError:
            return None
        return None if found is None else probe.choose(found, names, self.url)

    def is_well(self) -> bool:
        return probe.is_well(self.root, self.keep["api_key"])

    def lost_its_port(self) -> bool:
        """Whether another program listens at its port."""
        return listens((who["pid"] for who in self.tree.living()), self.port) is False

    def last_words(self) -> str:
        """The end of its log, and the first error in it, on lines of their own, and where it is."""
        lines, first = tail(self.log, LAST), first_error(self.log)
        if first is not None and not any(first in line for line in lines):
            lines = [first, "...", *lines]
        return "".join(f"\n  {line}" for line in lines) + f"\n  its log: {self.log}"

    def shorten_log(self) -> None:
        """Keep only the end of a log that has become too long."""
        # a full disk is no reason to end a server
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > MOST_LOG:
                _keep_end(self.log)


def first_error(log: Path) -> str | None:
    """The first exception that a log tells: servers end with an error of their own long after its cause."""
    with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as stream:
        for line in stream.read(KEPT_LOG).splitlines():
            found = ERROR.search(line)
            if found is not None:
                return found[1][:500]
    return None


def _keep_end(log: Path) -> None:
    with open(log, "r+b") as stream:
        stream.seek(-KEPT_LOG, os.SEEK_END)
        end = stream.read()
        # the server appends: what it writes next comes after this
        stream.truncate(0)
        stream.seek(0)
        stream.write(end)
