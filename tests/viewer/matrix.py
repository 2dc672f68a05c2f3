"""A matrix as an execution leaves it at any moment: plans, work folders, locks."""

import json
import time
from pathlib import Path

from cdpo.engine.process import identity
from cdpo.files import append_json, write_json
from cdpo.plan.freeze import write_plan
from cdpo.plan.graph import Plan, PlannedRun, PlannedStep
from cdpo.report.board import read_board
from cdpo.store import Store
from tests.results.made import finish, key

GONE = {"pid": 2**22 + 7, "start": 1}


def step(pipeline, name, *parents, **params):
    given = {f"in{at}": {"step": parent.key} for at, parent in enumerate(parents)}
    return PlannedStep(key(pipeline, name), pipeline, name, 1, params, given, 0)


class Matrix:
    """A store with a plan of `runs` DPO runs: one PREP and one SFT for all, and of each a DPO, a GEN, an EVALREWARD."""

    def __init__(self, folder: Path, runs: int = 3, tag: str = "first", tasks: str = "tasks.yaml") -> None:
        self.store = Store(folder / ".cdpo")
        prep = step("PREP", f"data_{tag}")
        sft = step("SFT", f"tiny_{tag}", prep)
        self.steps = {"prep": prep, "sft": sft}
        found = []
        for at in range(runs):
            dpo = step("DPO", f"tiny_{tag}_beta{at}", sft, beta=at)
            gen = step("GEN", f"DPO_tiny_{tag}_beta{at}", dpo)
            scored = step("EVALREWARD", f"DPO_tiny_{tag}_beta{at}", gen)
            self.steps |= {f"dpo{at}": dpo, f"gen{at}": gen, f"scored{at}": scored}
            keys = [each.key for each in (prep, sft, dpo, gen, scored)]
            found.append(PlannedRun(f"DPO_tiny_beta{at}", tag, 0, "DPO", "tiny", "data", {"beta": at}, keys))
        self.plan = Plan("x", str(folder / tasks), {}, found, {each.key: each for each in self.steps.values()})
        write_plan(self.store.root, self.plan, {})
        for run in found:
            about = {"seed": 0, "method": "DPO", "model": "tiny", "dataset": "data", "params": run.params, "marks": []}
            self.store.write_ref(tag, run.name, {**about, "steps": run.steps})

    def key(self, name):
        return self.steps[name].key

    def done(self, *names, seconds=1.0):
        for name in names:
            each = self.steps[name]
            finish(self.store, each.pipeline, each.name, each.key, params=each.params, inputs=each.inputs)
            manifest = self.store.find(each.key) / "manifest.json"
            told = json.loads(manifest.read_text())
            manifest.write_text(json.dumps({**told, "version": 1, "seconds": seconds}))

    def work(self, name, lines=()):
        each = self.steps[name]
        work = self.store.work(each.key)
        work.mkdir(parents=True)
        described = {name: getattr(each, name) for name in ("key", "pipeline", "name", "version", "params", "seed")}
        write_json(work / "step.json", {**described, "planned": each.inputs, "inputs": {}, "device": {}})
        (work / "attempt-1.log").write_text("".join(f"{line}\n" for line in lines))
        return work

    def runs_now(self, name, done=None, total=100, seconds=10.0, place="cpu 0", supervisor=None):
        """A worker makes the step; gives its lock, which is this process's."""
        work = self.work(name, ["begun"])
        lock = self.store.lock(self.key(name))
        who = {**identity(), "started": time.time() - seconds, "attempt": 1, "place": place}
        write_json(work / "proc.json", {**who, "supervisor": supervisor or identity()})
        if done is not None:
            append_json(work / "events.jsonl", {"event": "progress", "done": done, "total": total, "unit": "steps"})
        return lock

    def failed(self, name, reason, lines=()):
        work = self.work(name, lines)
        write_json(work / "failure.json", {"exit": 1, "reason": reason, "attempt": 1, "time": 0})

    def board(self):
        return read_board(self.store, self.store.read_refs())

    def state(self, name):
        return self.board().steps[self.key(name)]["state"]


def shown(app) -> str:
    """All HTML of a page."""
    assert not app.exception, app.exception
    return "\n".join(each.proto.body for each in app.get("html"))
