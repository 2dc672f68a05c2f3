"""Workers that an execution watches: its own children, and those that another one started."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdpo import disk
from cdpo.engine.gpus.slots import Place
from cdpo.engine.process import Identity, is_alive, send
from cdpo.engine.trees import Tree
from cdpo.engine.watch import Follower, failure, proc, tail
from cdpo.files import write_json
from cdpo.stopping import STOPPED

#: seconds for which a lock may be held after its worker's end before that is told
PATIENCE = 2.0


@dataclass
class Running:
    """A worker of this execution."""

    work: Path
    worker: subprocess.Popen[bytes]
    log: Path
    place: Place
    attempt: int
    tree: Tree

    def __post_init__(self) -> None:
        self.events = Follower(self.work / "events.jsonl")

    def signal(self, number: int) -> None:
        """Tell the worker, which ends what it started by itself; SIGKILL is for all of them."""
        self.worker.send_signal(number)
        if number == signal.SIGKILL:
            self.tree.kill()

    def record(self, code: int) -> dict[str, Any]:
        """How it failed, completed with the end of its log and kept as failure.json."""
        said = failure(self.work) or {"reason": _ended(code, self.work), "attempt": self.attempt}
        return _keep(self.work, self.log, {"exit": code, **said})


class Adopted:
    """A worker whose execution was killed (an orphan), or that another living execution watches."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.events = Follower(work / "events.jsonl")
        self.announced = False
        #: identity of the worker; None as long as it has not said who it is
        self.worker: Identity | None = None
        self.orphan = False
        self.attempt = 0
        self.place = ""
        self.started: float | None = None
        #: None where it was started by hand, or by a batch system
        self.tree: Tree | None = None
        self.log: Path | None = None
        #: since when the worker was seen to be dead, while the step's lock was held
        self._ended: float | None = None
        self._left = False
        # where the store does not answer just now, it is looked at again
        with contextlib.suppress(OSError):
            self.look()

    def look(self) -> None:
        """See who makes the step now, and whether the one who started it still watches."""
        found = proc(self.work)
        if found is None or is_alive(found):
            self._ended = None
        elif self._ended is None:
            self._ended = time.monotonic()
        if found is None or (self.worker is None and not is_alive(found)):
            return
        self.worker = {"pid": found["pid"], "start": found["start"]}
        self.attempt, self.place = found.get("attempt", 1), found.get("place", "")
        self.started = found["started"]
        if self.tree is None or self.tree.mark != found.get("mark"):
            self.tree = Tree(found["mark"]) if "mark" in found else None
        self.log = self.work / f"attempt-{self.attempt}.log"
        # Only a worker that lives can lose its execution: one that failed under its eyes is followed by its end too.
        if is_alive(self.worker):
            self.orphan = self.orphan or not is_alive(found.get("supervisor"))

    @property
    def has_ended(self) -> bool:
        """Whether its worker was seen dead; its step may be finished, or its lock held by what it started."""
        return self._ended is not None

    def signal(self, number: int) -> None:
        """As for a worker of one's own; nothing where it has ended."""
        if self.worker is not None:
            send(self.worker, number)
        if number == signal.SIGKILL and self.tree is not None:
            self.tree.kill()

    def left_behind(self) -> bool:
        """Whether the worker has been dead for a while and something holds its lock; True once."""
        self._left, before = self._ended is not None and time.monotonic() - self._ended > PATIENCE, self._left
        return self._left and not before

    def record(self) -> dict[str, Any]:
        assert self.worker is not None
        said = {"reason": f"process {self.worker['pid']} ended without publishing", "attempt": self.attempt}
        return _keep(self.work, self.log, said)


def _keep(work: Path, log: Path | None, said: dict[str, Any]) -> dict[str, Any]:
    whole = {"time": round(time.time(), 3), **said, "log": str(log), "tail": tail(log) if log else []}
    # it is shown even where the disk is full, and `status` is then told of no failure
    with contextlib.suppress(OSError):
        os.stat(work)
        write_json(work / "failure.json", whole, durable=False)
    return whole


def _ended(code: int, work: Path) -> str:
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        rest = "; `cdpo execute` goes on from what it has saved" if any((work / "ckpt").glob("*")) else ""
        return f"killed by {signal.Signals(-code).name}{hint}{rest}"
    if code == 0:
        return "ended without publishing"
    if code == STOPPED:
        return "stopped by SIGTERM; `cdpo execute` goes on from its last checkpoint"
    if code == disk.FAILED:
        return f"{disk.examined(work) or f'{work}: its disk failed'}; then `cdpo execute` goes on"
    return f"ended with exit code {code}"
