"""The board: every run of a store by stage, what each step is doing, what failed and why. Nothing is written."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdpo.engine.status import Timed, status
from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.pipeline import pipelines
from cdpo.plan.graph import Plan, PlannedRun, PlannedStep
from cdpo.store import Store
from cdpo.store.names import short

#: what a step may be doing, what matters most to who looks first
STATES = ("failed", "running", "damaged", "blocked", "waiting", "missing", "evicted", "done")
#: of these nothing is left to be done
OVER = frozenset(("done", "evicted"))
#: the stage of steps of which nothing tells what they were
UNKNOWN = "not here"


@dataclass(frozen=True)
class Row:
    """One run of the board."""

    name: str
    tag: str
    #: its tasks file; empty for a run of none
    tasks: str
    #: stage -> keys of the run's steps in it
    stages: dict[str, list[str]]

    @property
    def label(self) -> str:
        return f"{self.tag}/{self.name}"

    @property
    def steps(self) -> list[str]:
        return [key for keys in self.stages.values() for key in keys]


@dataclass(frozen=True)
class Cell:
    """What the steps of one run in one stage do: the state that matters most of theirs."""

    state: str
    keys: list[str]
    #: how many of them are over
    over: int
    #: how far the one that runs is, 0 to 1; None where it has not said
    share: float | None = None


@dataclass(frozen=True)
class Cause:
    """Steps that failed for the same reason."""

    reason: str
    #: what status says of each, the latest first
    steps: list[dict[str, Any]]
    #: labels of the runs that wait for them
    runs: list[str]
    #: keys of the steps that cannot be made before
    blocked: list[str]


@dataclass
class Known:
    """What was read before and is still so; for who looks again and again."""

    timed: Timed = field(default_factory=dict)
    #: file of a plan -> when it was written (ns), and the plan
    plans: dict[Path, tuple[int, Plan]] = field(default_factory=dict)


@dataclass
class Board:
    #: stages in the order in which runs go through them
    stages: list[str]
    rows: list[Row]
    #: key -> the step as it is planned
    planned: dict[str, PlannedStep]
    #: key -> what cdpo/engine/status.py says of the step, its `state` one of STATES
    steps: dict[str, dict[str, Any]]
    #: of a step that is made in parts: what is said of those
    parts: dict[str, list[dict[str, Any]]]
    #: whether the store has a plan that could be read
    has_plan: bool
    #: what could not be read, in words
    problems: list[str]

    def under(self, tags: Sequence[str]) -> list[Row]:
        """The runs of these tags; all for none."""
        return [row for row in self.rows if not tags or row.tag in tags]

    def cell(self, row: Row, stage: str) -> Cell | None:
        """None where the run has no step in that stage."""
        keys = row.stages.get(stage)
        if not keys:
            return None
        states = [self.steps[key]["state"] for key in keys]
        state = min(states, key=STATES.index)
        shares = [share for key in keys if (share := self.share(key)) is not None]
        return Cell(state, keys, sum(each in OVER for each in states), max(shares, default=None))

    def share(self, key: str) -> float | None:
        """How far a step that runs is, 0 to 1; None where it does not, or has not said."""
        said = self.steps[key]
        if said["state"] != "running" or not said.get("total"):
            return None
        return float(min(1.0, said["done"] / said["total"]))

    def state_of(self, row: Row) -> str:
        """The state that matters most of all steps of a run."""
        return min((self.steps[key]["state"] for key in row.steps), key=STATES.index, default="done")

    def counts(self, rows: Iterable[Row]) -> dict[str, Counter[str]]:
        """stage -> state -> how many steps of these runs, each once however many share it."""
        found: dict[str, Counter[str]] = {stage: Counter() for stage in self.stages}
        seen: set[str] = set()
        for row in rows:
            for stage, keys in row.stages.items():
                fresh = [key for key in keys if key not in seen]
                seen.update(fresh)
                found[stage].update(self.steps[key]["state"] for key in fresh)
        return found

    def at_work(self) -> list[dict[str, Any]]:
        """Steps and parts of steps that run, by the place where they do."""
        whole = [said for said in self.steps.values() if said["state"] == "running" and "pieces" not in said]
        parts = [part for several in self.parts.values() for part in several if part["state"] == "running"]
        return sorted([*whole, *parts], key=lambda said: (str(said.get("place") or "~"), said["name"]))

    def causes(self, rows: Iterable[Row]) -> list[Cause]:
        """Why steps of these runs failed, or are damaged: what failed most often first."""
        needing: dict[str, list[str]] = {}
        for row in rows:
            for key in row.steps:
                needing.setdefault(key, []).append(row.label)
        blocked: dict[str, list[str]] = {}
        found: dict[str, list[dict[str, Any]]] = {}
        for key in needing:
            said = self.steps[key]
            if said["state"] == "blocked":
                blocked.setdefault(said["by"], []).append(key)
            for each in (*self.parts.get(key, ()), said):
                if each["state"] in ("failed", "damaged"):
                    found.setdefault(each["error"], []).append(each)
        return sorted(
            (
                Cause(
                    reason,
                    steps[::-1],
                    list(dict.fromkeys(run for said in steps for run in needing.get(said.get("of", said["key"]), ()))),
                    [key for said in steps for key in blocked.get(label_of(said), ())],
                )
                for reason, steps in found.items()
            ),
            key=lambda cause: -len(cause.steps),
        )


def label_of(said: Mapping[str, Any]) -> str:
    """How a step is called on screens."""
    return f"{said['pipeline']}/{said['name']}-{short(said['key'])}"


def read_board(store: Store, refs: Sequence[Mapping[str, Any]], known: Known | None = None) -> Board:
    """The board of every plan of the store, and of the runs of `refs` that none of them has.

    Runs of a plan of which something is being made come first, then those of the plan that was frozen last.
    """
    known = known or Known()
    plans, problems = read_plans(store, known)
    there = {(run.tag, run.name) for plan in plans for run in plan.runs}
    rest = _unplanned(store, [ref for ref in refs if (ref["tag"], ref["name"]) not in there])
    steps = {key: step for plan in (*plans, rest) for key, step in plan.steps.items()}
    said, parts = _said(Plan("", "", {}, [], steps), store, known)
    for key in rest.steps.keys() - {key for plan in plans for key in plan.steps}:
        if said[key]["state"] == "waiting":
            # nobody plans to make it
            said[key]["state"] = "missing"
    plans.sort(key=lambda plan: not any(said[key]["state"] == "running" for key in plan.steps))
    rows = [_row(run, plan) for plan in (*plans, rest) for run in plan.runs]
    present = {stage for row in rows for stage in row.stages}
    stages = [*(name for name in pipelines() if name in present), *sorted(present - pipelines().keys())]
    return Board(stages, rows, steps, said, parts, bool(plans), problems)


def read_plans(store: Store, known: Known) -> tuple[list[Plan], list[str]]:
    """The frozen plans, the last one first, and what is wrong with those that cannot be read."""
    found, problems = [], []
    for path in store.plans.glob("[!.]*.json"):
        try:
            written = path.stat().st_mtime_ns
            if known.plans.get(path, (None,))[0] != written:
                known.plans[path] = (written, Plan.from_json(read_json(path)))
        except FileNotFoundError:
            continue
        except (DamagedFile, KeyError, TypeError, AttributeError):
            problems.append(f"{path}: this plan cannot be read; `cdpo prep` makes it again")
            continue
        found.append(known.plans[path])
    return [plan for _, plan in sorted(found, key=lambda each: -each[0])], problems


def _unplanned(store: Store, refs: Sequence[Mapping[str, Any]]) -> Plan:
    """Runs that no plan has (imported, made by hand, of a tasks file that has changed), as far as the store tells."""
    finished = store.finished() if refs else {}
    steps: dict[str, PlannedStep] = {}
    for key in dict.fromkeys(key for ref in refs for key in ref["steps"]):
        folder = finished.get(short(key))
        pipeline, name = UNKNOWN, ""
        if folder is not None:
            pipeline, name = folder.parent.name, folder.name.removesuffix(f"-{short(key)}")
        elif (described := _described(store.work(key) / "step.json")) is not None:
            pipeline, name = described["pipeline"], described["name"]
        steps[key] = PlannedStep(key, pipeline, name, 0, {}, {}, None)
    fields = ("name", "tag", "seed", "method", "model", "dataset", "params", "steps")
    return Plan("", "", {}, [PlannedRun(**{name: ref[name] for name in fields}) for ref in refs], steps)


def _described(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (OSError, DamagedFile):
        return None
    return found if isinstance(found, dict) and found.keys() >= {"pipeline", "name"} else None


def _said(plan: Plan, store: Store, known: Known) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """What status says, by key, in the board's words; and of the parts of steps, by the key of the whole."""
    whole: dict[str, dict[str, Any]] = {}
    parts: dict[str, list[dict[str, Any]]] = {}
    for each in status(plan, store, known.timed):
        if each["state"] == "adopted":
            each.update(state="running", alone=True)
        elif each["state"] == "waiting" and "error" in each:
            each["state"] = "damaged"
        if "of" in each:
            parts.setdefault(each["of"], []).append(each)
        else:
            whole[each["key"]] = each
    for key, several in parts.items():
        if whole[key]["state"] == "waiting" and any(part["state"] == "running" for part in several):
            whole[key].update(state="running", pieces=len(several))
    return whole, parts


def _row(run: PlannedRun, plan: Plan) -> Row:
    stages: dict[str, list[str]] = {}
    for key in run.steps:
        stages.setdefault(plan.steps[key].pipeline, []).append(key)
    return Row(run.name, run.tag, plan.tasks, stages)
