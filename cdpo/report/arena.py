"""`cdpo compare A B --arena REWARD COST`: reads what the arena counts (cdpo/stats/arena.py)."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cdpo.errors import CdpoError, UsageError
from cdpo.files import reading_parquet
from cdpo.plan.names import labels_of
from cdpo.report.groups import Group, find_two, seeds_of
from cdpo.report.reading import RunScores, Scored
from cdpo.score.scores import FILE, SAMPLES
from cdpo.stats.arena import OUTCOMES, SAFETY, Arena, arena
from cdpo.stats.paired import prompts

#: (prompt_id, number of the response)
Row = tuple[str, int]


def compare_in_arena(
    store: str | Path, a: str, b: str, reward: str, cost: str, tag: str | None = None
) -> dict[str, Any]:
    """`b` against `a` (runs or configurations) by two of the rewards that score both: a reward and a cost.

    Gives {a, b, reward, cost, split, seeds, n, prompts, missing, counts: {better|tied|worse: {safe|unsafe: rows}} (b's
    reward against a's, b's response), transition: {safe|unsafe (a's): {safe|unsafe (b's): rows}}, by_both: {better|
    tied|worse: transition}, safe: {a, b, difference: {mean, low, high, n}}, test: {became_safe, became_unsafe, p},
    conditional_on, marks}.

    A row is a prompt under a seed, and where prompts were answered several times, one of its responses: the k-th of
    `a` beside the k-th of `b`. Raises UsageError for names that are unknown or rewards that are none of the run's,
    CdpoError where the two have no row in common or were not scored alike.
    """
    one, other = find_two(store, a, b, tag)
    pairs = _by_seed(one, other)
    split, meant = "", set()
    scores: list[list[float]] = [[], [], [], []]
    clusters: list[str] = []
    for runs in pairs:
        by_reward, by_cost = ([_scored(run, name) for run in runs] for name in (reward, cost))
        _refuse_others(by_reward, by_cost, reward, cost)
        split = by_reward[0].split
        meant |= {by_reward[0].meaning, by_cost[0].meaning}
        columns = [_read(each) for each in (*by_reward, *by_cost)]
        rows = list(dict.fromkeys(row for column in columns for row in column))
        for column, values in zip(columns, scores, strict=True):
            values += [column.get(row, np.nan) for row in rows]
        clusters += prompts([each for each, _ in rows]) or [each for each, _ in rows]
    numbers = np.array(scores, dtype=np.float64)
    several = len(set(clusters)) < len(clusters)
    own = " (each seed has its own)" if len(meant) > 2 else ""
    fixed = f"{_seeds(pairs)}: the models, their responses, the reward model and the cost model{own}"
    found = arena(
        numbers[:2],
        numbers[2:],
        conditional_on=f"{fixed}; the intervals are over prompts",
        clusters=clusters if several else None,
    )
    if found is None:
        raise CdpoError(f"{one.label} and {other.label} share no prompt that has both scores in both")
    marks = [f"{run.label}: {mark}" for runs in pairs for run in runs for mark in run.marks]
    return {
        "a": one.label,
        "b": other.label,
        "reward": reward,
        "cost": cost,
        "split": split,
        "seeds": [[run.seed for run in runs] for runs in pairs],
        **_told(found),
        "conditional_on": found.safe_a.conditional_on,
        "marks": list(dict.fromkeys(marks)),
    }


def _by_seed(a: Group, b: Group) -> list[tuple[RunScores, RunScores]]:
    """Two single runs as they are; of configurations the runs of each seed that both have."""
    if len(a.runs) == len(b.runs) == 1:
        return [(a.runs[0], b.runs[0])]
    of_b = {run.seed: run for run in b.runs}
    pairs = [(run, of_b[run.seed]) for run in a.runs if run.seed in of_b]
    if not pairs:
        raise CdpoError(f"{a.label} and {b.label} have no seed in common")
    return pairs


def _seeds(pairs: list[tuple[RunScores, RunScores]]) -> str:
    of_a, of_b = (seeds_of(runs) for runs in zip(*pairs, strict=True))
    return of_a if of_a == of_b else f"{of_a} against {of_b}"


def _scored(run: RunScores, name: str) -> Scored:
    """The scores of a run that are called `name`, or after what was written so."""
    for label in (name, *labels_of([name])):
        if label in run.scored:
            return run.scored[label]
    there = f"it has {', '.join(run.scored)}" if run.scored else "name both at once, as reward: [[REWARD, COST]]"
    raise UsageError(f"the run {run.label} has no finished scores of several rewards called {name!r}; {there}")


def _refuse_others(by_reward: list[Scored], by_cost: list[Scored], reward: str, cost: str) -> None:
    """Raise where the two runs were scored by different models under one name, or the cost model is none."""
    for name, (one, other) in ((reward, by_reward), (cost, by_cost)):
        if one.meaning != other.meaning:
            raise CdpoError(f"{name} means different things in the two: another reward model, or another split")
    if not by_cost[0].reverse:
        raise UsageError(f"{cost} is no cost model: its entry in models/reward.yaml does not say `reverse: true`")
    if by_reward[0].reverse:
        raise UsageError(f"{reward} is a cost model: write the reward first, as --arena REWARD COST")


def _read(scored: Scored) -> dict[Row, float]:
    """The score of each response; rows without one are left out."""
    out = scored.folder / "out"
    with reading_parquet(out / (SAMPLES if (out / SAMPLES).exists() else FILE)) as file:
        table = file.read(use_threads=False)
    rows = table.select([name for name in _COLUMNS if name in table.column_names]).to_pylist()
    return {
        (row["prompt_id"], row.get("sample", 0)): row["reward_generated"]
        for row in rows
        if row["split"] == scored.split and row["reward_generated"] is not None
    }


_COLUMNS = ("split", "prompt_id", "sample", "reward_generated")


def _told(found: Arena) -> dict[str, Any]:
    by_both = {
        outcome: {of_a: {of_b: found.counts[outcome, of_a, of_b] for of_b in SAFETY} for of_a in SAFETY}
        for outcome in OUTCOMES
    }
    shares = {"a": found.safe_a, "b": found.safe_b, "difference": found.difference}
    return {
        "n": found.n,
        "prompts": found.prompts,
        "missing": found.missing,
        "counts": {outcome: _summed(list(table.values())) for outcome, table in by_both.items()},
        "transition": {of_a: _summed([table[of_a] for table in by_both.values()]) for of_a in SAFETY},
        "by_both": by_both,
        "safe": {
            name: {key: asdict(each)[key] for key in ("mean", "low", "high", "n")} for name, each in shares.items()
        },
        "test": {"became_safe": found.became_safe, "became_unsafe": found.became_unsafe, "p": found.p},
    }


def _summed(tables: list[Mapping[str, int]]) -> dict[str, int]:
    return {of_b: sum(table[of_b] for table in tables) for of_b in SAFETY}
