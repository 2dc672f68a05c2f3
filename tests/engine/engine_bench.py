"""Plans of trivial steps, and `execute` as a process of its own."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from cdpo.files import read_json_lines
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.store import Store

HERE = Path(__file__).parent
TRIVIAL = str(HERE / "trivial.py")


def make_plan(shape, diary, **params):
    """A plan of steps by name: shape = {"a": [], "b": ["a"]}; `params` by step name, e.g. a={"seconds": 1}."""
    steps = {}
    keys = {}
    for name, parents in shape.items():
        own = {"diary": str(diary), **params.get(name, {})}
        pipeline = own.pop("pipeline", "TRIVIAL")
        text = json.dumps([name, [keys[parent] for parent in parents], {k: v for k, v in own.items() if k != "diary"}])
        keys[name] = hashlib.sha256(text.encode()).hexdigest()
        inputs = {f"parent_{index}": {"step": keys[parent]} for index, parent in enumerate(parents)}
        steps[keys[name]] = PlannedStep(keys[name], pipeline, name, 1, own, inputs, 0)
    return Plan("test", "tasks.yaml", {}, [], steps)


class Bench:
    """A store, a diary, and executions on them."""

    def __init__(self, folder):
        self.folder = folder
        self.diary = folder / "diary.txt"
        self.store = Store(folder / "store")
        self.processes = []
        #: GPUs are those of a test, or none
        self.paths = os.pathsep.join([str(HERE), str(HERE / "fakes"), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.leases = folder / "leases"

    def plan(self, shape, **params):
        plan = make_plan(shape, self.diary, **params)
        (self.folder / "plan.json").write_text(json.dumps(plan.to_json()))
        return plan

    def execute(self, **options):
        """Start `execute` on the last plan; a Popen whose stdout holds one event a line."""
        command = [sys.executable, str(HERE / "execute.py"), str(self.folder), json.dumps(options)]
        environment = {**os.environ, "PYTHONPATH": self.paths, "CDPO_GPU_LEASES": str(self.leases)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        self.processes.append(process)
        return process

    def finish(self, process, timeout=60):
        """(exit code, events) of an execution."""
        text, _ = process.communicate(timeout=timeout)
        return process.returncode, [json.loads(line) for line in text.splitlines()]

    def run(self, **options):
        return self.finish(self.execute(**options))

    def told(self):
        """The diary: (what, name) -> how often."""
        if not self.diary.exists():
            return Counter()
        return Counter(tuple(line.split()[:2]) for line in self.diary.read_text().splitlines())

    def happened(self, kind, times=1, seconds=20):
        """Whether the store's history came to hold so many events of a kind."""
        return wait_for(lambda: len(of_kind(list(read_json_lines(self.store.events)), kind)) >= times, seconds)

    def workers(self):
        """Pids of live processes that work below this store."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                    state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if str(self.store.root).encode() in command and state != b"Z":
                    found.append(int(entry.name))
        return found

    def none_left(self, seconds=5.0):
        return wait_for(lambda: not self.workers(), seconds)

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for(condition, seconds=30.0):
    """Whether `condition()` became true in time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def of_kind(events, kind):
    return [event for event in events if event["event"] == kind]
