"""A service from the side of a step that needs it: held as long as the step runs, started, and asked where it answers.

    service = Service(step)
    address = service.address()     # blocks until the server answers
    ... requests to f"{address.url}/chat/completions" with "model": address.model ...

After a request that no server answered, `address` is called again: it returns another one, or the same, only once a
server answers there, and raises StepError where there will be none. This module imports no torch.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cdpo.engine import trees
from cdpo.engine.services import probe
from cdpo.errors import StepError
from cdpo.files import write_json
from cdpo.step import Step
from cdpo.store.services import SERVICE, Room

#: seconds between two looks at what the keeper says
PAUSE = 0.1
#: seconds for which a server of somebody else's is waited for
PATIENCE = 60.0
#: keepers that may die under one step
MOST_KEEPERS = 3
#: seconds that a keeper has to end what it started, where the job that it runs in ends with its step
ENDING = 120.0
#: environment variable by which a keeper is given its lock
LOCK = "CDPO_SERVICE_LOCK"

#: rooms that `held` holds for this process
_held: set[Path] = set()


class Address(NamedTuple):
    """Where a server is: `url` ends in /v1, `model` is what it calls the step's model."""

    url: str
    model: str


class Service:
    """The service of a step, which must have one (`step.device.service`); its server is started where none runs."""

    def __init__(self, step: Step) -> None:
        given = step.device.service
        if given is None:
            raise StepError(f"{step.pipeline}/{step.name} needs a server, and its step.json names none (`services:`)")
        self.step = step
        self.given: Mapping[str, Any] = given
        self._told = ""
        self._lost = 0
        #: since when it is waited for (time.monotonic)
        self._since: float | None = None
        self._room: Room | None = None
        if "folder" in given:
            self._room = Room(Path(given["folder"]))
            if self._room.folder not in _held:
                # run by hand, so that nobody else holds it: to the end of this process
                self._room.use()
            keep(self._room, given["keep"])

    def address(self) -> Address:
        """Where the server answers now, once it does. Raises StepError where it will not."""
        while (found := self.look()) is None:
            time.sleep(PAUSE)
        return found

    def look(self) -> Address | None:
        """Where the server answers now; None where it does not yet, so that one looks again. Raises StepError."""
        self.step.alive()
        found = self._external() if self._room is None else self._kept(self._room)
        self._since = None if found is not None else self._since or time.monotonic()
        return found

    def _kept(self, room: Room) -> Address | None:
        kept, state = room.is_kept(), room.state() or {}
        if state.get("state") == "failed":
            raise StepError(state["reason"])
        if not kept:
            # it may have said so between the two looks
            self._restart(room, room.state() or {})
            return None
        if state:
            self._tell(state)
        # a server that has just died is still said to be ready, until its keeper sees it
        if state.get("state") == "ready" and probe.is_well(state["root"], self.given["api_key"]):
            return Address(state["url"], state["model"])
        return None

    def _restart(self, room: Room, state: Mapping[str, Any]) -> None:
        """Start another keeper in place of one that is gone."""
        if state.get("state") == "failed":
            return
        if state.get("state") != "ended":
            self._lost += 1
            if self._lost > MOST_KEEPERS:
                raise StepError(f"the keeper of its server ended {self._lost} times; see {room.log}")
            self.step.note("the keeper of its server is gone; another one is started")
        keep(room, self.given["keep"])

    def _tell(self, state: Mapping[str, Any]) -> None:
        """Say once what it waits for, or what happened to its server."""
        if state["text"] != self._told and state["state"] not in ("preparing", "ended"):
            self._told = state["text"]
            self.step.note(f"its server: {state['text']}")

    def _external(self) -> Address | None:
        url, key = self.given["url"], self.given["api_key"]
        try:
            models = probe.listed(url, key)
            if models is not None:
                return Address(url, self._chosen(url, models))
            why = "it lists no models yet"
        except OSError as error:
            why = str(getattr(error, "reason", error))
        except probe.Unfit as error:
            raise StepError(str(error)) from None
        if self._since is not None and time.monotonic() - self._since > PATIENCE:
            raise StepError(f"no server answers at {url} ({why}); start it, or correct `url:` in devices.yaml")
        self._tell({"state": "waiting", "text": f"waits for {url}: {why}"})
        return None

    def _chosen(self, url: str, models: list[str]) -> str:
        named = self.given["model"]
        if named is None and not models:
            raise probe.Unfit(f"{url} does not list its models: write what it calls the one that is meant (`model:`)")
        if named is not None and models and named not in models:
            raise probe.Unfit(f"{url} lists {', '.join(models)}, and not {named} (`model:`)")
        return named or probe.choose(models, [], url)


def keep(room: Room, told: Mapping[str, Any]) -> None:
    """Start a keeper that is told so, unless the service has one. Raises StepError where none can be started."""
    lock = room.lock()
    if lock is None:
        return
    try:
        room.forget_state()
        for log in room.folder.glob("server-*.log"):
            log.unlink(missing_ok=True)
        write_json(room.folder / "service.json", told, durable=False)
        mark = f"{trees.store_mark(room.store)}{SERVICE}{room.name}/{time.time_ns()}"
        with open(room.log, "ab") as log_stream:
            started = subprocess.run(
                [sys.executable, "-P", "-m", "cdpo.engine.services", str(room.folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_stream,
                pass_fds=lock.descriptors,
                start_new_session=True,
                env={**os.environ, trees.MARK: mark, LOCK: json.dumps(lock.described())},
                check=False,
            )
    except BaseException:
        lock.release()
        raise
    if started.returncode != 0 or not started.stdout:
        lock.release()
        raise StepError(f"the keeper of its server cannot be started; see {room.log}")
    lock.hand_over(int(started.stdout))


@contextlib.contextmanager
def held(step: Step) -> Iterator[None]:
    """Keep the service of a step, where it has one, from ending; in a job it has ended when this is left."""
    given = step.device.service
    if given is None or "folder" not in given:
        yield
        return
    room = Room(Path(given["folder"]))
    share = room.use()
    _held.add(room.folder)
    try:
        yield
    finally:
        _held.discard(room.folder)
        share.release()
    if given["keep"]["job"]:
        limit = time.monotonic() + ENDING
        while room.is_kept() and time.monotonic() < limit:
            time.sleep(PAUSE)
