"""Swept values: the one that was best on one split, so that another split, which had no say, can be reported.

Every value is judged by the mean over all seeds of the metric's mean over prompts. A value that lacks a seed is not
judged: that would favour a sweep's luckier seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdpo.config.canonical import canonical_json
from cdpo.config.values import SEED
from cdpo.plan.names import show_value
from cdpo.report.reading import RunScores
from cdpo.stats.paired import TIE


@dataclass
class Candidate:
    """One value of what is swept, under all seeds."""

    over: dict[str, Any]
    runs: list[RunScores]
    #: seed -> mean over prompts on the split that is chosen on
    means: dict[int, float]
    #: seed -> why it has no value
    missing: dict[int, str]

    @property
    def mean(self) -> float | None:
        return sum(self.means.values()) / len(self.means) if self.means and not self.missing else None


@dataclass
class Choice:
    """What was chosen for one configuration."""

    metric: str
    split: str
    candidates: list[Candidate]
    chosen: Candidate | None
    #: others that are as good; the chosen one is the smallest
    tied: list[Candidate]
    #: the runs that results show
    shown: list[RunScores]
    place: int

    @property
    def swept(self) -> bool:
        return len(self.candidates) > 1

    def described(self) -> dict[str, Any]:
        """As `cdpo results --json` has it."""
        first = self.candidates[0].runs[0]
        varied = {name.removeprefix(f"{first.method}.") for name in self.candidates[0].over}
        return {
            "tag": first.tag,
            **{name: getattr(first, name) for name in ("method", "model", "dataset")},
            "params": {
                name: value
                for name, value in first.params.items()
                if name not in varied and name.rpartition(".")[2] not in ("split", SEED)
            },
            "metric": self.metric,
            "split": self.split,
            "best": "lowest" if lower_is_better(self.metric) else "highest",
            "over": self.chosen and self.chosen.over,
            "mean": self.chosen and self.chosen.mean,
            "end": self.chosen and _end(self.chosen, self.candidates),
            "tied": [each.over for each in self.tied],
            "candidates": [
                {
                    "over": each.over,
                    "mean": each.mean,
                    "seeds": sorted(each.means),
                    "missing": {str(seed): why for seed, why in sorted(each.missing.items())},
                }
                for each in self.candidates
            ],
            "shown": sorted(run.name for run in self.shown),
        }


def lower_is_better(metric: str) -> bool:
    return metric.rpartition("/")[2] == "loss"


def choose(runs: Sequence[RunScores]) -> tuple[list[RunScores], list[Choice]]:
    """The runs to show, in their order, and the choices made; runs of experiments without `select` are all shown."""
    families: dict[tuple[str, str], list[RunScores]] = {}
    for run in runs:
        if run.select is not None:
            families.setdefault((run.tag, run.select["family"]), []).append(run)
    choices = [_choice(members) for members in families.values()]
    shown = {id(run) for choice in choices for run in choice.shown}
    kept = [run for run in runs if run.select is None or id(run) in shown]
    return kept, sorted(choices, key=lambda each: (each.candidates[0].runs[0].tag, each.place))


def _choice(runs: Sequence[RunScores]) -> Choice:
    about: dict[str, Any] = runs[0].select or {}
    metric, split = about["metric"], about["split"]
    seeds = sorted({run.seed for run in runs})
    by_value: dict[str, list[RunScores]] = {}
    for run in runs:
        by_value.setdefault(canonical_json((run.select or {})["over"]), []).append(run)
    candidates = [_candidate(members, metric, split, seeds) for members in by_value.values()]
    candidates.sort(key=lambda each: _size(each.over))
    sign = -1.0 if lower_is_better(metric) else 1.0
    judged = {at: sign * each.mean for at, each in enumerate(candidates) if each.mean is not None}
    best = [at for at, mean in judged.items() if mean >= max(judged.values()) - TIE]
    chosen = candidates[best[0]] if best and len(candidates) > 1 else None
    reported = [run for run in runs if (run.select or {})["of"] != split]
    return Choice(
        metric=metric,
        split=split,
        candidates=candidates,
        chosen=chosen,
        tied=[candidates[at] for at in best[1:]] if chosen else [],
        shown=[run for run in reported if chosen is None or any(run is each for each in chosen.runs)],
        place=min((run.select or {})["place"] for run in runs),
    )


def _candidate(runs: list[RunScores], metric: str, split: str, seeds: Sequence[int]) -> Candidate:
    means: dict[int, float] = {}
    missing: dict[int, str] = {}
    for seed in seeds:
        own = [run for run in runs if run.seed == seed]
        found = [measured for run in own if (measured := run.on(split, metric)) is not None]
        if found:
            means[seed] = found[0].mean
            continue
        here = [run for run in own if (run.select or {})["of"] in (split, None)] or own
        states = [run.state for run in here]
        missing[seed] = (
            "not asked for"
            if not states
            else "failed"
            if "failed" in states
            else "unfinished"
            if "unfinished" in states
            else f"has no {metric} on {split}"
        )
    return Candidate(dict((runs[0].select or {})["over"]), runs, means, missing)


def _size(over: Mapping[str, Any]) -> list[tuple[int, float, str]]:
    """Numbers by size and before everything else, which goes by how it is written."""
    return [
        (0, float(value), "")
        if isinstance(value, int | float) and not isinstance(value, bool)
        else (1, 0.0, show_value(value))
        for value in over.values()
    ]


def _end(chosen: Candidate, candidates: Sequence[Candidate]) -> str | None:
    """`smallest` or `largest` where the one number that was swept was best at an end of the sweep."""
    values = [next(iter(each.over.values())) for each in candidates if len(each.over) == 1]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < max(3, len(candidates)):
        return None
    value = next(iter(chosen.over.values()))
    return "smallest" if value == min(numbers) else "largest" if value == max(numbers) else None
