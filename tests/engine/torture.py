"""The torture: executions of a plan on two pretend GPUs, in which whatever runs is killed at random moments.

Nothing here looks into the engine: it is started as a user starts it, killed from outside, and judged by the files that
it leaves and by the diary that the steps tell (torture_reader.py).
"""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from cdpo.files import write_json
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.store import Store

HERE = Path(__file__).parent
STEPS = 20
#: which of them runs as two ranks: the first, since later there is hardly a moment at which both GPUs are free
PAIR = 0
UNITS = 20
UNIT_SECONDS = 0.04
#: kills of each kind that a two-rank step may suffer, since each costs it the seconds that torch takes to start
PAIR_KILLS = 1
#: how often each kind is chosen; where none of it lives, nothing is killed
WEIGHTS = {"supervisor": 3, "worker": 5, "launcher": 1, "rank": 3}
#: how many more supervisors than workers may be killed: while the two-rank step starts, there is little else
AHEAD = 20
GPUS = ["GPU-torture-0", "GPU-torture-1"]
DEVICES = {
    "gpus": "auto",
    "poll_seconds": 0.05,
    "pipelines": {"PAIR": {"processes": 2, "distributed_type": "MULTI_CPU"}},
}
MODULE = str(HERE / "torture_step.py")
MODULES = {"CHAIN": MODULE, "PAIR": MODULE}


def make_plan(rng, diary):
    """Twenty steps, each with up to three parents among those before it; the same for the same `rng`."""
    steps = {}
    salt = rng.random()
    for index in range(STEPS):
        name = f"step{index:02}"
        key = hashlib.sha256(f"{salt} {name}".encode()).hexdigest()
        parents = rng.sample(list(steps), min(len(steps), rng.choice((0, 1, 2, 3))))
        inputs = {f"parent_{place}": {"step": parent} for place, parent in enumerate(parents)}
        params = {"diary": str(diary), "units": UNITS, "unit_seconds": UNIT_SECONDS}
        pipeline = "PAIR" if index == PAIR else "CHAIN"
        steps[key] = PlannedStep(key, pipeline, name, 1, params, inputs, 0)
    return Plan("torture", "tasks.yaml", {}, [], steps)


def at_once(plan, diary):
    """The same plan with nothing to wait for."""
    own = {"diary": str(diary), "unit_seconds": 0.0}
    return replace(plan, steps={key: replace(step, params=step.params | own) for key, step in plan.steps.items()})


def pretend_gpus(folder):
    """Two cards by nvidia-smi and by NVML; what the environment of an execution must hold to see them."""
    (folder / "bin").mkdir()
    script = folder / "bin" / "nvidia-smi"
    lines = "".join(f"GPU {index}: NVIDIA Pretend (UUID: {uuid})\n" for index, uuid in enumerate(GPUS))
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
    script.chmod(0o755)
    card = {"name": "NVIDIA Pretend", "memory_total": 80 << 30, "memory_used": 1 << 20, "processes": []}
    write_json(folder / "nvml.json", {"gpus": [{"uuid": uuid, **card} for uuid in GPUS]})
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return environment | {
        "PATH": f"{folder / 'bin'}:{environment['PATH']}",
        "FAKE_NVML": str(folder / "nvml.json"),
        "PYTHONPATH": os.pathsep.join(str(HERE / room) for room in (".", "fakes", "faults")),
        "CDPO_GPU_LEASES": str(folder / "leases"),
    }


class Torture:
    """One store, and the campaign on it. `folder` is empty at first."""

    def __init__(self, folder, seed, environment=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.rng = folder, random.Random(seed)
        self.store = Store(folder / "store")
        self.environment = pretend_gpus(folder) | (environment or {})
        self.kills = Counter()
        self.mischief = Counter()
        #: what executions that were not killed ended with
        self.codes = Counter()
        self.plans = []
        self.executions = []
        self._suffered = Counter()

    @property
    def killed(self):
        return sum(self.kills.values())

    @property
    def said(self):
        """What the executions wrote to stderr, the end of it."""
        path = self.folder / "stderr.txt"
        return path.read_text()[-3000:] if path.exists() else ""

    def diary(self, number):
        return self.folder / f"diary-{number}.jsonl"

    # one round

    def begin(self, plan):
        """Make `plan` the one that is executed from now on."""
        self.plans.append(plan)
        write_json(self.folder / "plan.json", plan.to_json())

    def round(self, kills):
        """Make one plan of 20 steps, killing until the campaign has come to `kills` or the plan is finished.

        Returns the exit code of an execution that nobody disturbed, at the end.
        """
        plan = make_plan(self.rng, self.diary(len(self.plans)))
        self.begin(plan)
        wanted = 1
        while self.killed < kills and not self._finished(plan) and "Traceback" not in self.said:
            self._buried()
            if self.rng.random() < 0.1:
                wanted = self.rng.choice((1, 2))
            while len(self.executions) < wanted:
                self.executions.append(self.execute())
            time.sleep(self.rng.uniform(0.02, 0.15))
            if self.rng.random() < 0.15:
                self._do_mischief()
            self._kill_some()
        for process in self.executions:
            process.wait(120)
        self._buried()
        return self.execute().wait(120)

    def execute(self):
        """Start `execute` on the plan of this round."""
        options = {"devices": DEVICES, "modules": MODULES, "pretend": True}
        command = [sys.executable, str(HERE / "execute.py"), str(self.folder), json.dumps(options)]
        with open(self.folder / "stdout.txt", "ab") as out, open(self.folder / "stderr.txt", "ab") as err:
            return subprocess.Popen(command, stdout=out, stderr=err, env=self.environment)

    def _finished(self, plan):
        finished = self.store.finished()
        return all(key[:12] in finished for key in plan.steps)

    def _buried(self):
        for process in self.executions:
            if process.poll() not in (None, -signal.SIGKILL):
                self.codes[process.returncode] += 1
        self.executions = [process for process in self.executions if process.returncode is None]

    # killing

    def living(self):
        """Processes on this store, by kind: [(pid, key of the step or None)]."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                text = " ".join(words)
                if (
                    str(self.folder) in text
                    and "nvidia-smi" not in text
                    and (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
                ):
                    key = re.search(r"/work/([0-9a-f]{64})", text)
                    found.setdefault(_kind(words), []).append((int(entry.name), key and key[1]))
        return found

    def _kill_some(self):
        """One process of a random kind; now and then, as when the power fails, all there are."""
        living = {
            kind: [each for each in those if self._may_die(kind, each[1])] for kind, those in self.living().items()
        }
        if self.rng.random() < 0.03:
            victims = [(kind, each) for kind, those in living.items() for each in those]
        else:
            (kind,) = self.rng.choices(list(WEIGHTS), WEIGHTS.values())
            victims = [(kind, self.rng.choice(living[kind]))] if living.get(kind) else []
            if kind == "supervisor" and self.kills[kind] > self.kills["worker"] + AHEAD:
                return
        for kind, (pid, key) in victims:
            self._suffered[kind, key] += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills[kind] += 1

    def _may_die(self, kind, key):
        if key is None or self.plans[-1].steps[key].pipeline != "PAIR":
            return True
        return self._suffered[kind, key] < PAIR_KILLS

    # what else may happen to a store

    def _do_mischief(self):
        kind = self.rng.choice(("index", "no index", "damage", "damage"))
        index = self.store.root / "index.sqlite"
        if kind == "index" and self.store.root.exists():
            index.write_bytes(b"SQLite format 3\0" + self.rng.randbytes(300))
            self.mischief["index corrupted"] += 1
        elif kind == "no index" and index.exists():
            index.unlink()
            self.mischief["index deleted"] += 1
        elif kind == "damage":
            self._damage_leftovers()

    def _damage_leftovers(self):
        """What a crash of the machine may leave in the folder of a step that nobody makes right now."""
        working = self.store.working()
        if not working:
            return
        key = self.rng.choice(working)
        lock = self.store.lock(key)
        if lock is None:
            return
        work = self.store.work(key)
        try:
            if not work.exists() or (work / "publish" / "manifest.json").exists():
                return
            for name in ("proc.json", "failure.json", "step.json", "events.jsonl", "rank-failure.json"):
                if self.rng.random() < 0.5:
                    (work / name).write_bytes(self.rng.choice((b"", b'{"pid": 1', b"\0" * 100)))
            for name in ("out", "publish", "publish/out", "inputs"):
                (work / name).mkdir(exist_ok=True)
                (work / name / "half").write_bytes(b"half of somethi")
            (work / "ckpt").mkdir(exist_ok=True)
            (work / "ckpt" / ".rank-0.json.1.tmp").write_bytes(b"[3, ")
            self.mischief["leftovers damaged"] += 1
        finally:
            self.store.unlock(key, lock)

    def close(self):
        for those in self.living().values():
            for pid, _ in those:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.executions:
            process.wait()


def _kind(words):
    if words[1].endswith("execute.py"):
        return "supervisor"
    module = words[words.index("-m") + 1] if "-m" in words else None
    return {"cdpo.engine.worker": "worker", "cdpo.engine.ranks.rank": "rank"}.get(module, "launcher")
