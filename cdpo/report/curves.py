"""Curves of training: what the trainings of runs logged, joined over seeds, smoothed, and thinned for a picture."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.store import Store
from cdpo.store.names import short

if TYPE_CHECKING:
    import numpy as np

FILE = "metrics.jsonl"
#: what else stands in its lines: where, and how far
PLACES = ("step", "epoch")
#: how the seeds of a configuration are drawn together
SPREADS = ("lowest to highest", "mean ± standard deviation")


@dataclass(frozen=True)
class Training:
    """One training step of a run: the run's `tag/name` and seed, the step's pipeline, its `metrics.jsonl`."""

    run: str
    seed: int
    stage: str
    key: str
    path: Path
    #: `finished`, `training`, `failed`, or `stopped`: interrupted, and nobody is at it
    state: str


def trainings(
    store: Store, refs: Iterable[Mapping[str, Any]], finished: Mapping[str, Path] | None = None, own: bool = False
) -> list[Training]:
    """The trainings of `refs` (as `Store.read_refs` gives them) that logged anything, also those that go on now.

    `finished` is `store.finished()`, for who asks several times; with `own` only those of each run's method are looked
    for. The list goes by run, and by the order of its steps.
    """
    folders = store.finished() if finished is None else finished
    working = set(store.working())
    found = []
    for ref in refs:
        for key in ref["steps"]:
            folder, state = folders.get(short(key)), "finished"
            stage = folder.parent.name if folder is not None else None
            if folder is None and key in working:
                folder = store.work(key)
                stage, state = _pipeline(folder), ""
            if folder is None or stage is None or (own and stage != ref["method"]) or not (folder / FILE).exists():
                continue
            run = f"{ref['tag']}/{ref['name']}"
            found.append(Training(run, ref["seed"], stage, key, folder / FILE, state or _state(store, key)))
    return found


def _pipeline(work: Path) -> str | None:
    """Of a step that is not finished; None where its folder is only just made, or goes right now."""
    with contextlib.suppress(OSError, DamagedFile):
        return str(read_json(work / "step.json")["pipeline"])
    return None


def _state(store: Store, key: str) -> str:
    if store.is_locked(key):
        return "training"
    return "failed" if (store.work(key) / "failure.json").exists() else "stopped"


@dataclass(frozen=True)
class Points:
    """One metric of one training: by rising optimiser step, without what is not finite."""

    steps: "np.ndarray"
    #: passes over the data at each step; NaN where the log does not say
    epochs: "np.ndarray"
    values: "np.ndarray"
    #: points that are left out: the value was infinite or no number
    lost: int = 0


@dataclass(frozen=True)
class Log:
    metrics: dict[str, Points] = field(default_factory=dict)
    last_step: int = 0


def read_log(path: Path) -> Log:
    """All metrics of a `metrics.jsonl`. A training that was resumed may have logged a step twice: the last one counts.

    A last line that is only half written is passed over. Raises DamagedFile for what is no such file.
    """
    import numpy as np

    found: dict[str, dict[int, float]] = {}
    epochs: dict[int, float] = {}
    last = 0
    try:
        for line in _lines(path):
            point = json.loads(line)
            at = int(point["step"])
            last = max(last, at)
            if "epoch" in point:
                epochs[at] = float(point["epoch"])
            for name, value in point.items():
                if name not in PLACES and isinstance(value, int | float) and not isinstance(value, bool):
                    found.setdefault(name, {})[at] = float(value)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{path}: damaged, it cannot be read ({error})") from None
    metrics = {}
    for name, values in found.items():
        steps = np.array(sorted(values), dtype=np.int64)
        numbers = np.array([values[at] for at in steps.tolist()])
        finite = np.isfinite(numbers)
        kept = steps[finite]
        where = np.array([epochs.get(at, np.nan) for at in kept.tolist()], dtype=np.float64)
        metrics[name] = Points(kept, where, numbers[finite], int((~finite).sum()))
    return Log(metrics, last)


def _lines(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return [line for line in data[: data.rfind(b"\n") + 1].splitlines() if line]


def changed(path: Path) -> tuple[int, int]:
    """What tells a file from itself a moment later: its size and time."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


def smooth(values: "np.ndarray", weight: float) -> "np.ndarray":
    """The exponential moving average of TensorBoard and of wandb's "exponential moving average": `weight` in [0, 1) is
    what each average keeps of the one before, and the bias towards the start is divided out.

    It equals `pandas.Series(values).ewm(alpha=1 - weight, adjust=True).mean()`. 0 changes nothing.
    """
    import numpy as np

    if not 0 <= weight < 1:
        raise ValueError("a smoothing weight lies in [0, 1)")
    total = share = 0.0
    smoothed = np.empty(len(values))
    for at, value in enumerate(values.tolist()):
        total = total * weight + (1 - weight) * value
        share = share * weight + (1 - weight)
        smoothed[at] = total / share
    return smoothed


@dataclass(frozen=True)
class Band:
    """A configuration's curve: for each step the mean over the seeds that have a value there, the band around it, and
    how many seeds these are. `low` and `high` are the mean itself where it is one seed."""

    steps: "np.ndarray"
    epochs: "np.ndarray"
    mean: "np.ndarray"
    low: "np.ndarray"
    high: "np.ndarray"
    seeds: "np.ndarray"

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def fewer_from(self) -> int | None:
        """The first step that does not have the value of every seed; None where all have."""
        fewer = self.steps[self.seeds < self.seeds.max()] if len(self) else self.steps
        return int(fewer[0]) if len(fewer) else None


def band(curves: Sequence[Points], spread: str = SPREADS[0], weight: float = 0.0) -> Band:
    """The curves of several seeds as one, each smoothed by itself before; `spread` is one of SPREADS.

    The standard deviation is the sample's (n - 1). Nothing is interpolated: a step that a seed did not log has the mean
    of the others.
    """
    import numpy as np

    if spread not in SPREADS:
        raise ValueError(f"{spread!r} is none of {SPREADS}")
    every = [each.steps for each in curves]
    steps = np.unique(np.concatenate(every)) if every else np.empty(0, dtype=np.int64)
    values = np.full((len(curves), len(steps)), np.nan)
    epochs = np.full((len(curves), len(steps)), np.nan)
    for row, curve in enumerate(curves):
        at = np.searchsorted(steps, curve.steps)
        values[row, at] = smooth(curve.values, weight)
        epochs[row, at] = curve.epochs
    there = np.isfinite(values)
    seeds = there.sum(axis=0)
    filled = np.where(there, values, 0.0)
    mean = filled.sum(axis=0) / np.maximum(seeds, 1)
    if spread == SPREADS[0]:
        low = np.where(there, values, np.inf).min(axis=0, initial=np.inf)
        high = np.where(there, values, -np.inf).max(axis=0, initial=-np.inf)
    else:
        squares = np.where(there, (values - mean) ** 2, 0.0).sum(axis=0)
        half = np.sqrt(squares / np.maximum(seeds - 1, 1))
        low, high = mean - half, mean + half
    known = np.isfinite(epochs)
    where = np.where(known, epochs, 0.0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    return Band(steps, where, mean, low, high, seeds)


def thin(curve: Band, most: int) -> Band:
    """At most `most` (4 or more) points of a curve: of each stretch of steps the lowest and the highest, so that no
    spike is lost; the band there is as wide as it is anywhere in the stretch. First and last point stay."""
    import numpy as np

    if len(curve) <= most:
        return curve
    inner = np.arange(1, len(curve) - 1)
    stretches = np.array_split(inner, (most - 2) // 2)
    kept = [0, len(curve) - 1]
    low, high = curve.low.copy(), curve.high.copy()
    for stretch in stretches:
        means = curve.mean[stretch]
        chosen = {int(stretch[means.argmin()]), int(stretch[means.argmax()])}
        kept += chosen
        for at in chosen:
            low[at], high[at] = curve.low[stretch].min(), curve.high[stretch].max()
    rising = np.sort(np.array(kept))
    shown = (curve.steps, curve.epochs, curve.mean, low, high, curve.seeds)
    return Band(*(each[rising] for each in shown))
