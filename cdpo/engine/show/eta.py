"""How long the rest will take: from past steps of each pipeline, and from the progress of those that run."""

import time
from collections import Counter
from statistics import median
from typing import Any


class Estimate:
    """Seconds left for a whole matrix. A pipeline nobody has timed yet is left out, and `complete` is then False."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._seconds: dict[str, list[float]] = {}
        self._waiting: Counter[str] = Counter()
        #: key -> pipeline, when it started, its share that is done
        self._running: dict[str, tuple[str, float, float]] = {}

    def timed(self, pipeline: str, seconds: list[float]) -> None:
        self._seconds.setdefault(pipeline, []).extend(seconds)

    def waits(self, pipeline: str, steps: int = 1) -> None:
        """So many more (or, negative, fewer) steps of `pipeline` are to be started."""
        self._waiting[pipeline] += steps

    def started(self, key: str, pipeline: str, at: float | None = None) -> None:
        self._running[key] = (pipeline, time.time() if at is None else at, 0.0)

    def progressed(self, key: str, share: float) -> None:
        if key in self._running:
            pipeline, at, _ = self._running[key]
            self._running[key] = (pipeline, at, share)

    def ended(self, key: str, seconds: float | None = None) -> None:
        """`seconds` is given where the step was done."""
        found = self._running.pop(key, None)
        if found and seconds is not None:
            self.timed(found[0], [seconds])

    def left(self) -> dict[str, Any] | None:
        """{"seconds", "complete"}, or None where nothing is known."""
        now = time.time()
        typical = {pipeline: median(seconds[-20:]) for pipeline, seconds in self._seconds.items() if seconds}
        rest = []
        complete = True
        for pipeline, at, share in self._running.values():
            passed = now - at
            if share > 0:
                whole = passed / share
                typical.setdefault(pipeline, whole)
                rest.append(whole - passed)
            elif pipeline in typical:
                rest.append(max(0.0, typical[pipeline] - passed))
            else:
                complete = False
        work = sum(rest)
        for pipeline, steps in self._waiting.items():
            if steps and pipeline not in typical:
                complete = False
            work += steps * typical.get(pipeline, 0.0)
        if not work and not complete:
            return None
        return {"seconds": round(max(work / self.slots, max(rest, default=0.0)), 1), "complete": complete}
