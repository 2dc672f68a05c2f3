"""What an execution has to do: which steps can start, in the order of the plan, and what became of the others."""

import heapq
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.engine.outcome import Outcome
from cdpo.engine.selection import Selection
from cdpo.engine.show.reporter import Reporter

if TYPE_CHECKING:
    from cdpo.plan.graph import Plan


class Agenda:
    def __init__(self, plan: "Plan", selection: Selection, reporter: Reporter) -> None:
        self.plan, self.selection, self.reporter = plan, selection, reporter
        self.store, self.estimate = reporter.store, reporter.estimate
        self.outcome = Outcome(cached=list(selection.cached))
        #: folders of the finished steps
        self.paths: dict[str, Path] = dict(selection.cached)
        #: steps that can start, by place in the plan
        self._ready: list[tuple[int, str]] = []
        todo = set(selection.todo)
        self._place = {key: index for index, key in enumerate(selection.todo)}
        parents = {key: [each for each in plan.steps[key].parents if each in todo] for key in selection.todo}
        self._children: dict[str, list[str]] = {key: [] for key in todo}
        for key, above in parents.items():
            for parent in above:
                self._children[parent].append(key)
        self._sorter: TopologicalSorter[str] = TopologicalSorter(parents)
        self._sorter.prepare()

    def __bool__(self) -> bool:
        """Whether a step can start."""
        return bool(self._ready)

    def reached(self) -> Iterator[str]:
        """Steps whose parents have all been finished since the last call."""
        yield from self._sorter.get_ready()

    def add(self, key: str) -> None:
        """The step can start."""
        heapq.heappush(self._ready, (self._place[key], key))

    def take(self) -> str:
        """The first step that can start; whoever takes it starts it, or adds it again."""
        return heapq.heappop(self._ready)[1]

    # what becomes of a step

    def begun(self, key: str, at: float | None = None) -> None:
        """Somebody makes the step, since `at` (seconds of the epoch), or now."""
        self.estimate.waits(self.plan.steps[key].pipeline, -1)
        self.estimate.started(key, self.plan.steps[key].pipeline, at)

    def begin_again(self, key: str) -> None:
        """Whoever made the step has gone; it can start."""
        self.estimate.ended(key)
        self.estimate.waits(self.plan.steps[key].pipeline)
        self.add(key)

    def interrupted(self, key: str) -> None:
        """The step was stopped by the user."""
        self.estimate.ended(key)

    def done(self, key: str, path: Path, seconds: float) -> None:
        """The step is finished, in the folder `path`, and took so long."""
        self.paths[key] = path
        self.outcome.done.append(key)
        self.estimate.ended(key, seconds)
        finished, run = len(self.outcome.done), len(self.selection.todo)
        self.reporter.done(key, path, seconds, finished=finished, run=run, eta=self.estimate.left())
        self._sorter.done(key)

    def failed(self, key: str, record: dict[str, Any], log: Path | None = None) -> None:
        """The step failed, for the reason of `record` (see cdpo/engine/watch.py), and blocks what needs it."""
        self.outcome.failed[key] = record["reason"]
        self.estimate.ended(key)
        self.reporter.emit(
            "step_failed",
            key,
            reason=record["reason"],
            log=record.get("log") or str(log or self.store.work(key)),
            tail=record.get("tail", []),
        )
        label = self.plan.steps[key].label
        below = list(self._children[key])
        while below:
            child = below.pop()
            if child not in self.outcome.blocked:
                self.outcome.blocked[child] = label
                self.estimate.waits(self.plan.steps[child].pipeline, -1)
                self.reporter.emit("step_blocked", child, by=label)
                below.extend(self._children[child])

    def missing_input(self, key: str) -> Path | None:
        """The folder of a parent that is no longer there, and nowhere else either; None where all are."""
        for parent in self.plan.steps[key].parents:
            if not self.paths[parent].exists():
                step = self.plan.steps[parent]
                self.paths[parent] = self.store.look(step.pipeline, step.name, parent) or self.paths[parent]
            if not self.paths[parent].exists():
                return self.paths[parent]
        return None
