"""`python -m cdpo.engine.services FOLDER`: keeps the server of one service, for as long as a step needs it.

Started by the first worker that needs it (client.py), it leaves that worker's process tree, waits for the GPUs, starts
the server, says where it answers, starts it again when it dies, and ends when nobody uses it any more. What it says is
in state.json, always with `keeper` (pid and start), `mark`, `text`, `restarts` and `allowed`:

    waiting      for a GPU
    preparing    the model is built, or merged with its adapter
    starting     the server was started and does not answer yet
    ready        `url`, `root` and `model`: it answers there, and calls its model so; `server` is its pid
    restarting   it died, or fell silent; `text` says how
    failed       given up, for `reason`
    ended        nobody needed it
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cdpo import stopping
from cdpo.engine import trees
from cdpo.engine.gpus import leases
from cdpo.engine.gpus.foreign import foreign
from cdpo.engine.gpus.nvml import list_gpus
from cdpo.engine.gpus.slots import Place, Slots
from cdpo.engine.process import describe, identity, user_name
from cdpo.engine.services import prepare, probe
from cdpo.engine.services.client import LOCK
from cdpo.engine.services.commands import needs_merging
from cdpo.engine.services.server import Server
from cdpo.engine.watch import tail
from cdpo.errors import CdpoError
from cdpo.files import read_json, write_json
from cdpo.store import locks
from cdpo.store.services import SERVICE, Room

#: seconds for which a server is kept that nobody uses: until the next step of its model has begun
LINGER = 5.0
#: seconds between two looks around
PAUSE = 0.2
#: seconds between two questions to a server that starts, and to one that is ready
ASK, ASK_READY = 0.5, 5.0
#: seconds of silence after which a server that was ready counts as lost
SILENCE = 60.0
#: seconds that killed processes, and the memory of GPUs, may take to be gone
SETTLE = 60.0
#: starts that a port may cost which another program takes in the same moment
MOST_PORTS = 5


class Unused(Exception):
    """Nobody needs the server any more."""


class GivenUp(Exception):
    """There will be no server; the message says why."""


class Keeper:
    def __init__(self, room: Room, mark: str) -> None:
        self.room, self.mark = room, mark
        self.keep: dict[str, Any] = read_json(room.folder / "service.json")
        self.linger = 0.0 if self.keep["job"] else LINGER
        self.leased = not self.keep["job"]
        self.used = time.monotonic()
        self.starts = self.restarts = self.ports = 0
        self.was_ready = False
        self._said: dict[str, Any] = {}
        self._unwritten = False

    def run(self) -> None:
        """Keep the service to its end, which is said. Raises nothing but what has no name."""
        try:
            self._say("preparing", "its keeper begins")
            self._end_earlier()
            self._prepare()
            place = self._place()
            try:
                self._serve(place)
            finally:
                self._give_back(place)
        except (Unused, stopping.Stopped):
            self._clear()
            self._say("ended", "nobody needs it")
        except GivenUp as error:
            self._clear()
            self._say("failed", str(error).splitlines()[0], reason=str(error))
        except Exception as error:
            traceback.print_exc()
            reason = str(error) if isinstance(error, CdpoError) else f"its keeper failed: {error!r}"
            self._clear()
            self._say("failed", reason, reason=f"{reason}; see {self.room.log}")

    # what is said, and what is heard

    def _say(self, state: str, text: str, **more: Any) -> None:
        about = {"restarts": self.restarts, "allowed": self.keep["restarts"]}
        who = {"keeper": identity(), "host": self.keep["host"], "mark": self.mark, "label": self.keep["label"]}
        self._said = {"state": state, "text": text, **about, **more, **who, "time": round(time.time(), 3)}
        self._note(f"{state}: {text}")
        self._write()

    def _write(self) -> None:
        try:
            write_json(self.room.folder / "state.json", self._said, durable=False)
            self._unwritten = False
        except OSError as error:
            # a full disk: those who wait for the address wait on, and it is tried again
            if not self._unwritten:
                self._note(f"state.json cannot be written: {error}")
            self._unwritten = True

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(time.strftime("%d %b %H:%M:%S"), text, flush=True)

    def _look_around(self) -> None:
        """To be called all the time. Raises Unused once nobody has needed the server for a while."""
        if self._unwritten:
            self._write()
        if self.room.is_used():
            self.used = time.monotonic()
        elif time.monotonic() - self.used > self.linger:
            raise Unused
        time.sleep(PAUSE)

    # what the server needs

    def _prepare(self) -> None:
        folder = self.room.folder
        prepare.clear(folder)
        if self.keep["build"] is None and not needs_merging(self.keep):
            prepare.link(Path(self.keep["model"]), folder / "model")
            return
        self._say("preparing", "its model is built, or merged with its adapter")
        log = folder / "prepare.log"
        command = [sys.executable, "-P", "-m", "cdpo.engine.services.prepare", str(folder)]
        mark = f"{self.mark}/prepare"
        with open(log, "wb") as stream:
            making = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, trees.MARK: mark},
            )
        try:
            while making.poll() is None:
                self._look_around()
        finally:
            self._kill(trees.Tree(mark))
            making.wait()
        if making.returncode != 0:
            last = (tail(log, 1) or [f"exit code {making.returncode}"])[0]
            raise GivenUp(f"its model cannot be prepared for the server: {last}; see {log}")

    def _place(self) -> Place:
        """The GPUs of the server, once it has them."""
        wanted = self.keep["gpus"]
        if not wanted:
            return Place(-1, "cpu")
        gpus = [gpu for gpu in list_gpus() if gpu.uuid in wanted]
        if not self.leased:
            return Place(-1, "gpu", gpus[: self.keep["processes"]])
        slots = Slots(gpus, 0)
        told = ""
        while True:
            place = slots.take(self.keep["processes"])
            if place is not None:
                self._sign(place)
                return place
            if "; ".join(slots.obstacles()) != told:
                told = "; ".join(slots.obstacles())
                self._say("waiting", f"for a GPU: {told}")
            self._look_around()

    def _sign(self, place: Place) -> None:
        who = {**identity(), "user": user_name(os.getuid()), "since": time.time()}
        more = {"step": self.keep["label"], "does": "serves", "store": str(self.room.store.root)}
        with contextlib.suppress(OSError):
            for descriptor in place.descriptors:
                leases.sign(descriptor, {**who, **more})

    # the server

    def _serve(self, place: Place) -> None:
        while True:
            server = self._start(place)
            try:
                why, taken = self._watch(server), server.lost_its_port()
            finally:
                self._end(server, place)
            if taken and not self.was_ready:
                if server.ended() and self.ports < MOST_PORTS:
                    self.ports += 1
                    self._note(f"port {server.port} was taken by another program; another one")
                    continue
                why += "; at its port a process listens that it did not start"
            if not self.was_ready:
                raise GivenUp(f"its server never became ready: {why}{server.last_words()}")
            if self.restarts == self.keep["restarts"]:
                raise GivenUp(f"its server was restarted {self.restarts} times; now {why}{server.last_words()}")
            self.restarts += 1
            self._say("restarting", f"its server is restarted ({self.restarts} of {self.keep['restarts']}): {why}")

    def _start(self, place: Place) -> Server:
        self.starts += 1
        try:
            server = Server(self.room, self.keep, place.gpus, f"{self.mark}/{self.starts}", self.starts)
        except OSError as error:
            raise GivenUp(f"its server cannot be started: {error}; see `services:` in devices.yaml") from None
        if self.restarts == 0:
            self._say("starting", f"{server.title} was started on {_named(place)}", server=server.process.pid)
        return server

    def _watch(self, server: Server) -> str:
        """Until it is to be ended, and why. Raises Unused."""
        asked, answered, ready = 0.0, time.monotonic(), False
        while True:
            self._look_around()
            ended = server.ended()
            if ended is not None:
                return ended if ready else f"{ended} before it was ready"
            now = time.monotonic()
            if now - asked < (ASK_READY if ready else ASK):
                continue
            asked = now
            server.shorten_log()
            if ready:
                if server.is_well():
                    answered = time.monotonic()
                elif time.monotonic() - answered > SILENCE:
                    return f"{server.title} has not answered for {SILENCE:.0f} seconds"
                continue
            try:
                model = server.model()
            except probe.Unfit as error:
                raise GivenUp(f"its server does not serve the step's model: {error}{server.last_words()}") from None
            if model is not None:
                ready = self.was_ready = True
                answered = time.monotonic()
                where = {"url": server.url, "root": server.root, "model": model, "server": server.process.pid}
                self._say("ready", f"{server.title} answers at {server.url}", **where)
            elif now - server.began > self.keep["ready_seconds"]:
                return f"{server.title} did not answer within {self.keep['ready_seconds'] / 60:g} minutes"

    def _end(self, server: Server, place: Place) -> None:
        """Kill the server and all that it started, and wait until its memory is free."""
        self._kill(server.tree)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(SETTLE)
        self._await_memory(place)

    def _end_earlier(self) -> None:
        """Kill what a keeper that was killed left running."""
        for mark in trees.marked(f"{trees.store_mark(self.room.store)}{SERVICE}{self.room.name}/"):
            if not mark.startswith(self.mark):
                self._kill(trees.Tree(mark))

    def _kill(self, tree: trees.Tree) -> None:
        limit = time.monotonic() + SETTLE
        while left := tree.kill():
            if time.monotonic() > limit:
                self._note(f"killed and not gone: {', '.join(describe(who['pid']) for who in left)}")
                return
            time.sleep(PAUSE / 4)

    def _await_memory(self, place: Place) -> None:
        if not self.leased:
            return
        limit = time.monotonic() + SETTLE
        while True:
            held = [why.text for gpu in place.gpus if (why := foreign(gpu)) is not None]
            if not held:
                return
            if time.monotonic() > limit:
                self._note(f"the memory of the server is not free: {'; '.join(held)}")
                return
            time.sleep(PAUSE)

    def _give_back(self, place: Place) -> None:
        # to be told to stop in the middle of this would leave some of it running
        with stopping.finishing():
            self._kill(trees.Tree(f"{self.mark}/"))
            self._await_memory(place)
            place.hand_over()

    def _clear(self) -> None:
        with contextlib.suppress(OSError):
            prepare.clear(self.room.folder)


def _named(place: Place) -> str:
    return ", ".join(f"GPU {gpu.index}" for gpu in place.gpus) or "the CPU"


def main(folder: Path) -> int:
    room = Room(folder)
    if os.fork() != 0:
        # whoever starts it waits for this process, and for nothing more
        os._exit(0)
    os.setsid()
    described = json.loads(os.environ.pop(LOCK))
    sys.stdout.flush()
    print(os.getpid(), flush=True)
    # from here on both go to the log, and whoever reads the pid sees the end of it
    os.dup2(2, 1)
    stopping.obey(insistent=False)
    lock = locks.inherited(described)
    if lock is None:
        print("another process keeps this service", file=sys.stderr)
        return 1
    try:
        Keeper(room, os.environ[trees.MARK]).run()
    finally:
        lock.release()
    return 0
