"""Two configurations in every metric that means the same for both: paired by prompt, averaged over their seeds."""

from collections.abc import Callable, Container, Sequence
from dataclasses import asdict
from typing import Any

from cdpo.report.groups import Group, seeds_of
from cdpo.report.index import Index
from cdpo.report.reading import JUDGED, Metric, RunScores
from cdpo.stats.paired import Column, align, average, between_seeds, paired

#: what the dataset's own responses score: the same for every policy, so there is nothing to compare
REFERENCE = ("reward/chosen", "gold/chosen")


def paired_differences(
    a: Group,
    b: Group,
    index: Index,
    wanted: Callable[[Metric], bool] = lambda metric: True,
    metrics: Container[str] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every shared metric's difference, and why the others have none."""
    compared: dict[str, Any] = {}
    not_compared: dict[str, str] = {}
    for name in a.metrics:
        if metrics is not None and name not in metrics:
            continue
        ours, theirs = a.having(name), b.having(name)
        if ours[0].metrics[name].kind in REFERENCE or not theirs or not wanted(ours[0].metrics[name]):
            continue
        if _columns(ours, name) == _columns(theirs, name):  # of the very same steps: a reward's, which they share
            continue
        if meanings(ours, name) != meanings(theirs, name):
            not_compared[name] = (
                "it means different things: another reward model or judge, another split, other rows or another "
                "training method"
            )
            continue
        found = _difference(ours, theirs, name, index)
        if found is None:
            not_compared[name] = "they share no prompts"
        else:
            compared[name] = found
    return compared, not_compared


def _difference(
    ours: Sequence[RunScores], theirs: Sequence[RunScores], metric: str, index: Index
) -> dict[str, Any] | None:
    """Ours minus theirs, averaged over the seeds and paired by prompt; None where they share no prompts."""
    seeds = seeds_of(ours) if seeds_of(ours) == seeds_of(theirs) else f"{seeds_of(ours)} against {seeds_of(theirs)}"
    what = "the models" if ours[0].metrics[metric].alone else f"the models, their responses and {scorer(metric)}"
    fixed = f"{seeds}: {what}; the interval is over prompts, paired"

    def work_out() -> dict[str, Any] | None:
        one = average([run.metrics[metric].column for run in ours])
        other = average([run.metrics[metric].column for run in theirs])
        found = paired(one, other, conditional_on=fixed)
        if found is None:
            return None
        over_seeds = between_seeds(seed_differences(ours, theirs, metric))
        _, shared = align([one, other])
        return {
            "a_mean": float(shared[0].mean()),
            "b_mean": float(shared[1].mean()),
            **asdict(found),
            "between_seeds": over_seeds and asdict(over_seeds),
        }

    key = f"{sources(ours, metric)} minus {sources(theirs, metric)} {fixed}"
    found: dict[str, Any] | None = index.remember("difference", key, work_out)
    return found


def _columns(runs: Sequence[RunScores], metric: str) -> set[int]:
    """Which values these are: the same for runs that have them from the same step."""
    return {id(run.metrics[metric].column) for run in runs}


def meanings(runs: Sequence[RunScores], metric: str) -> set[str]:
    return {run.metrics[metric].meaning for run in runs}


def seed_differences(a: Sequence[RunScores], b: Sequence[RunScores], metric: str) -> list[float]:
    """One difference per seed that both have, over the prompts that both answered under it."""
    theirs = {run.seed: run.metrics[metric].column for run in b}
    pairs: list[tuple[Column, Column]] = [
        (run.metrics[metric].column, theirs[run.seed]) for run in a if run.seed in theirs
    ]
    tables = [table for ids, table in map(align, pairs) if ids]
    return [float((table[0] - table[1]).mean()) for table in tables]


def scorer(metric: str) -> str:
    """Who gave the scores of a metric, in words."""
    return "the judge" if metric.startswith(JUDGED) else "the reward model"


def sources(runs: Sequence[RunScores], metric: str) -> str:
    return " ".join(f"{run.seed}:{run.metrics[metric].source}" for run in runs)
