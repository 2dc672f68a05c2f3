"""Says what happens: to the display, and to the store's history."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cdpo.engine.outcome import Outcome
from cdpo.engine.selection import Selection
from cdpo.engine.show.display import Display, Silent
from cdpo.engine.show.eta import Estimate
from cdpo.engine.watch import Follower
from cdpo.store import Store

if TYPE_CHECKING:
    from cdpo.plan.graph import Plan

#: fields of a progress event that are no values to be shown
FIXED = ("time", "event", "done", "total", "unit")


class Followed(Protocol):
    """Whoever makes a step, as far as it is listened to."""

    events: Follower


class Reporter:
    def __init__(self, store: Store, plan: "Plan", display: Display, estimate: Estimate) -> None:
        self.store, self.plan, self.display, self.estimate = store, plan, display, estimate

    def emit(self, event: str, key: str | None = None, **fields: Any) -> None:
        """One event, about the step `key` where there is one; see cdpo/engine/show/display.py for the kinds."""
        whole: dict[str, Any] = {"event": event, "time": round(time.time(), 3)}
        if key is not None:
            step = self.plan.steps[key]
            whole |= {"key": key, "pipeline": step.pipeline, "name": step.name}
        whole |= fields
        self._shown(lambda: self.display.show(whole))
        # workers write their own `step_done`, whoever watches; progress stays beside the step
        if event not in ("step_progress", "step_done"):
            # a full disk must not end the execution, which alone can say what failed because of it
            with contextlib.suppress(OSError):
                self.store.append_event(whole)

    def opened(self, selection: Selection, *, slots: int | None, eta: dict[str, Any] | None) -> None:
        """What there is to do, and on how many slots; None where a batch system decides that."""
        there, todo = len(selection.cached), len(selection.todo)
        self.emit("plan", total=there + todo, cached=there, run=todo, slots=slots, eta=eta)

    def done(
        self, key: str, path: Path, seconds: float, *, finished: int, run: int, eta: dict[str, Any] | None
    ) -> None:
        """A step is finished, in the folder `path`: so many of those that are `run`."""
        self.emit("step_done", key, seconds=seconds, path=str(path), finished=finished, run=run, eta=eta)

    def closed(self, outcome: Outcome, seconds: float) -> None:
        """The execution has ended, after so long."""
        self.emit(
            "finished",
            done=len(outcome.done),
            cached=len(outcome.cached),
            failed=len(outcome.failed),
            blocked=len(outcome.blocked),
            interrupted=outcome.interrupted,
            seconds=round(seconds, 3),
            exit_code=outcome.exit_code,
        )

    def tick(self) -> None:
        self._shown(self.display.tick)

    def _shown(self, show: Callable[[], None]) -> None:
        try:
            show()
        except OSError:
            # nobody looks any more (`cdpo execute | head`, a full disk behind `>`, a lost terminal); the work goes on
            self.display = Silent()

    def listen(self, key: str, each: Followed) -> None:
        """Pass on what a worker said since the last time: its notes, and the latest of its progress."""
        latest = None
        for event in each.events.new():
            if event["event"] == "progress":
                latest = event
            elif event["event"] == "note":
                self.emit("note", key, text=event["text"])
        if latest is not None:
            self.estimate.progressed(key, latest["done"] / max(1, latest["total"]))
            values = {name: value for name, value in latest.items() if name not in FIXED}
            shown = {name: latest[name] for name in ("done", "total", "unit")}
            self.emit("step_progress", key, **shown, values=values, eta=self.estimate.left())
