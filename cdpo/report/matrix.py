"""All configurations against all in one metric: `cdpo compare --metric NAME`."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cdpo.errors import CdpoError, UsageError
from cdpo.report.differences import REFERENCE, meanings, scorer, seed_differences
from cdpo.report.groups import Group, described, distinct, find_named, grouped
from cdpo.report.reading import Reader
from cdpo.report.select import lower_is_better
from cdpo.seeds import derive_seed
from cdpo.stats.intervals import Estimate
from cdpo.stats.matrix import ALPHA, POWER, PairedDifference, all_pairs
from cdpo.stats.paired import TIE, average, between_seeds, prompts
from cdpo.stats.strengths import ELO, Strengths, strengths
from cdpo.store import Store


def compare_all(store: str | Path, metric: str, names: Sequence[str] = (), tag: str | None = None) -> dict[str, Any]:
    """Every pair of configurations (of those that `names` name; without one, of all) in `metric`.

    A configuration's values are averaged over its seeds, prompt by prompt. Gives {metric, split, better: "higher" or
    "lower", level, power, runs: [{number, label, name, tag, method, model, dataset, params, seeds, mean, n, elo,
    group}], pairs: [{a, b (numbers), difference, low, high, p, p_holm, n, missing, smallest, wins, ties, losses,
    verdict, between_seeds}], left_out: {LABEL: why},
    conditional_on}; `difference` is that of b minus a, and `wins` are b's. Elo is of wins by prompt, over a mean of
    zero; runs of different `group` always won or lost against each other, and have no common scale.

    Raises UsageError for a name that is unknown or ambiguous and for a metric that no run has, CdpoError where fewer
    than two can be compared.
    """
    reader = Reader(Store(Path(store)))
    known = grouped([reader.run(ref) for ref in reader.store.read_refs(tag)])
    chosen = [find_named(each, known, "configuration") for each in names] if names else known
    having = [group for group in chosen if group.having(metric)]
    kept, copies = distinct(having, lambda group: _values(group, metric))
    members, left_out = _comparable([group for group in chosen if group in kept or group not in having], metric)
    left_out |= copies
    columns = [average([run.metrics[metric].column for run in group.having(metric)]) for group in members]
    ids = tuple(dict.fromkeys(each for column in columns for each in column.ids))
    places = {each: at for at, each in enumerate(ids)}
    scores = np.full((len(members), len(ids)), np.nan)
    for row, column in zip(scores, columns, strict=True):
        row[[places[each] for each in column.ids]] = column.values
    better = -1.0 if lower_is_better(metric) else 1.0
    draw = np.random.default_rng(derive_seed(0, "compare", metric))
    pairs = all_pairs(scores, draw, clusters=prompts(ids))
    won = np.zeros((len(members), len(members)))
    told = []
    for pair in pairs:
        a, b = (members[at].having(metric) for at in (pair.a, pair.b))
        over_seeds = between_seeds(seed_differences(b, a, metric))
        told.append(told_pair(pair, scores[pair.b] - scores[pair.a], better, won, over_seeds))
    ranked = strengths(won)
    return {
        "metric": metric,
        "split": members[0].having(metric)[0].metrics[metric].split,
        "better": "lower" if better < 0 else "higher",
        "level": ALPHA,
        "power": POWER,
        "runs": [
            told_run(
                at,
                group,
                [run.seed for run in group.having(metric)],
                float(np.nanmean(scores[at])),
                int((~np.isnan(scores[at])).sum()),
                ranked,
            )
            for at, group in enumerate(members)
        ],
        "pairs": told,
        "left_out": left_out,
        "conditional_on": f"the models of these seeds, their responses and {scorer(metric)}",
    }


def _values(group: Group, metric: str) -> Any:
    """What a configuration has of a metric, to tell copies of one from each other."""
    columns = [run.metrics[metric].column for run in group.having(metric)]
    return tuple((column.ids, column.values.tobytes()) for column in columns)


def _comparable(groups: Sequence[Group], metric: str) -> tuple[list[Group], dict[str, str]]:
    """The configurations whose numbers mean the same, as many as there are; and why the others are left out."""
    having = [group for group in groups if group.having(metric)]
    if not having or having[0].having(metric)[0].metrics[metric].kind in REFERENCE:
        kinds = {name: group.having(name)[0].metrics[name].kind for group in groups for name in group.metrics}
        there = sorted(name for name, kind in kinds.items() if kind not in REFERENCE)
        raise UsageError(f"no run has a metric {metric!r} to be compared in; there are: {', '.join(there) or 'none'}")
    left_out = {group.label: f"has no {metric} yet" for group in groups if group not in having}
    rooms: dict[frozenset[str], list[Group]] = {}
    for group in having:
        rooms.setdefault(frozenset(meanings(group.having(metric), metric)), []).append(group)
    largest = max(rooms.values(), key=len)
    for room in rooms.values():
        if room is not largest:
            other = "another reward model or judge, another split or another training method"
            why = f"its {metric} means something else: {other}"
            left_out |= dict.fromkeys((group.label for group in room), why)
    if len(largest) < 2:
        listed = "; ".join(f"{label}: {why}" for label, why in left_out.items())
        raise CdpoError(f"{largest[0].label} has nothing to be compared with in {metric}. {listed}".rstrip())
    return largest, left_out


def told_run(at: int, group: Group, seeds: Sequence[int], mean: float, n: int, ranked: Strengths) -> dict[str, Any]:
    """A configuration as a matrix tells it; the first has the number 1."""
    return {
        "number": at + 1,
        "label": group.label,
        "name": group.name,
        "tag": group.tag,
        **described(group.runs[0]),
        "seeds": list(seeds),
        "mean": mean,
        "n": n,
        "elo": float(ranked.log_odds[at] * ELO),
        "group": int(ranked.group[at]),
    }


def told_pair(
    pair: PairedDifference, differences: np.ndarray, better: float, won: np.ndarray, over_seeds: Estimate | None
) -> dict[str, Any]:
    """One pair as a matrix tells it; `differences` are b's minus a's by row, and `better` is 1 where higher ones are.
    Its wins, ties counting half, are added to `won`."""
    signed = better * differences
    wins, losses = int((signed > TIE).sum()), int((signed < -TIE).sum())
    ties = pair.n - wins - losses
    won[pair.b, pair.a] += wins + ties / 2
    won[pair.a, pair.b] += losses + ties / 2
    first, second = pair.a + 1, pair.b + 1
    verdict = pair.verdict
    if verdict != "not resolved":
        verdict = f"{second} > {first}" if better * (pair.difference or 0.0) > 0 else f"{first} > {second}"
    return {
        **asdict(pair),
        "a": first,
        "b": second,
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "verdict": verdict,
        "between_seeds": over_seeds and asdict(over_seeds),
    }
