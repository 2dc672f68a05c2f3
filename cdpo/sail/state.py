"""What a resumed training needs beside what Trainer keeps: it travels in the checkpoint's trainer_state.json."""

from typing import Any

from cdpo.sail.online import OnlinePairs
from cdpo.sail.routes import Route
from cdpo.sail.workshop import PolicyWorkshop
from cdpo.train.trl_resume import Remembers, sum_over_ranks

#: how much of the moving baseline each optimiser step keeps
DECAY = 0.9


class SAILState(Remembers):
    """The moving baseline, the routes taken so far, and pairs that wait for their step.

    Routes, labels and responses themselves follow from the seed.
    """

    def __init__(self, moving: bool) -> None:
        self.moving = moving
        #: the moving mean of F on rows with T1; None before the first of them
        self.mean_preference: float | None = None
        self.realised = dict.fromkeys(Route, 0)
        #: whose waiting pairs are kept
        self.online: OnlinePairs | None = None
        #: whose counts of rated responses are
        self.workshop: PolicyWorkshop | None = None
        self._sum = self._count = 0.0

    @property
    def baseline(self) -> float:
        """What is subtracted from F in T1: a constant as far as the rows of this step are concerned."""
        return (self.mean_preference or 0.0) if self.moving else 0.0

    def add_preferences(self, total: float, count: float) -> None:
        """Take the sum of F over so many rows with T1 of this rank into account, from the next step on."""
        self._sum += total
        self._count += count

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.moving:
            total, count = sum_over_ranks([self._sum, self._count], args)
            if count:
                before = total / count if self.mean_preference is None else self.mean_preference
                self.mean_preference = DECAY * before + (1 - DECAY) * total / count
        self._sum = self._count = 0.0

    def remember(self) -> dict[str, Any]:
        waiting = self.online.waiting if self.online is not None else {}
        return {
            "mean_preference": self.mean_preference,
            "realised": {route.name: count for route, count in self.realised.items()},
            "waiting": [[*step, list(pairs.items())] for step, pairs in waiting.items()],
            "rated": [self.workshop.asked, self.workshop.rated] if self.workshop is not None else [0, 0],
        }

    def recall(self, kept: Any) -> None:
        kept = kept or _NOTHING
        self.mean_preference = kept["mean_preference"]
        self.realised = {route: kept["realised"].get(route.name, 0) for route in Route}
        if self.online is not None:
            self.online.waiting = {(epoch, number): dict(pairs) for epoch, number, pairs in kept["waiting"]}
        if self.workshop is not None:
            self.workshop.asked, self.workshop.rated = kept["rated"]
        self._sum = self._count = 0.0


#: what a training has that begins at its first step, be it the trainer's second one
_NOTHING: dict[str, Any] = {"mean_preference": None, "realised": {}, "waiting": [], "rated": [0, 0]}
