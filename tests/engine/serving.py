"""Plans of steps that a server answers for, and what runs of such servers."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from engine_bench import HERE, Bench, wait_for

from cdpo.engine.process import identity
from cdpo.engine.services import probe
from cdpo.engine.services.listening import free_port
from cdpo.engine.services.running import services
from cdpo.files import read_json, read_json_lines
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.store.services import rooms

ASKING = str(HERE / "asking.py")
ANSWERING = str(HERE / "answering.py")


class Serving(Bench):
    """A bench whose steps, of the pipeline ASK, need servers; their models are folders beside the store."""

    def __init__(self, folder):
        super().__init__(folder)
        self.paths = os.pathsep.join([str(HERE / "hasty"), self.paths])

    def model(self, name="model"):
        folder = self.folder / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"name": name}))
        (folder / "generation_config.json").write_text("{}")
        return {"folder": str(folder), "sha256": hashlib.sha256(name.encode()).hexdigest()}

    def served_plan(self, *names, model="model", **params):
        """A plan of steps that ask; of `model`, or of one each by name (a mapping)."""
        steps = {}
        for name in names:
            own = {"backend": "openai", "diary": str(self.diary), "rows": 5, **params}
            key = hashlib.sha256(json.dumps([name, params]).encode()).hexdigest()
            inputs = {"model": self.model(model if isinstance(model, str) else model[name])}
            steps[key] = PlannedStep(key, "ASK", name, 1, own, inputs, 0)
        plan = Plan("test", "tasks.yaml", {}, [], steps)
        self.write(plan)
        return plan

    def write(self, plan):
        (self.folder / "plan.json").write_text(json.dumps(plan.to_json()))

    def ask(self, *options, service=(), also=(), **more):
        """Start `execute`, with a server of these options; a Popen as of `execute`."""
        command = ["python", ANSWERING, "--port", "{port}", "--model", "{model}", *options]
        told = {"server": command, "ready_minutes": 0.5, **dict(service)}
        devices = {"services": {"ASK": told}, **dict(more.pop("devices", {}))}
        with pytest.MonkeyPatch.context() as patch:
            if "faults" in more:
                patch.setenv("FAULTS", json.dumps(more.pop("faults")))
                patch.setattr(self, "paths", os.pathsep.join([str(HERE / "faults"), self.paths]))
            return self.execute(devices=devices, modules={"ASK": ASKING, **dict(also)}, **more)

    def services(self):
        return services(self.store)

    def service(self, state="ready"):
        """The one service that runs, once it is in a state."""
        assert wait_for(lambda: [each["state"] for each in self.services()] == [state], 20), self.services()
        (found,) = self.services()
        return found

    def service_state(self):
        """What the one service is doing; None where none runs."""
        return next((each["state"] for each in self.services()), None)

    def rooms(self):
        return rooms(self.store)

    def room(self):
        (found,) = self.rooms()
        return found

    def started(self):
        """How many servers told the diary that they began."""
        return sum(line.startswith("server ") for line in self.diary.read_text().splitlines())

    def journal(self, key):
        """[row, answer] of an unfinished step."""
        return list(read_json_lines(self.store.work(key) / "ckpt" / "rows.jsonl"))

    def asked(self, key):
        return len(self.journal(key))

    @contextlib.contextmanager
    def standing(self, *options):
        """A server that no service started: the process, and where it answers."""
        port = free_port()
        command = [sys.executable, ANSWERING, "--port", str(port), "--model", "x", *options]
        process = subprocess.Popen(command)
        try:
            assert wait_for(lambda: probe.is_well(f"http://127.0.0.1:{port}", None))
            yield process, f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()

    def rows(self, key):
        return read_json(self.store.find(key) / "out" / "rows.json")

    def no_service(self, seconds=15.0):
        """Whether all keepers, and all that they started, came to an end."""
        return wait_for(lambda: not self.services(), seconds) and self.none_left(2.0)


def kill(pid, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def child_of(log):
    """The pid that a server with --child printed."""
    lines = Path(log).read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("child ")))


def lives(pid):
    try:
        return bool(identity(pid))
    except ProcessLookupError:
        return False
