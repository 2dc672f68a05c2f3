"""All configurations against all by what a judge said of their responses side by side: `cdpo compare --judge NAME`."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cdpo.errors import CdpoError, UsageError
from cdpo.judge.lengths import at_equal_lengths
from cdpo.report.groups import Group, distinct, find_named, grouped
from cdpo.report.matrix import told_pair, told_run
from cdpo.report.reading import LENGTHS, Match, Reader
from cdpo.seeds import derive_seed
from cdpo.stats.matrix import ALPHA, POWER, compare_pairs
from cdpo.stats.paired import Column, align, average, between_seeds, prompts
from cdpo.stats.strengths import strengths
from cdpo.store import Store

#: how it is called where other comparisons have a metric
METRIC = "judge/winrate"


def compare_judged(
    store: str | Path, judge: str | None, names: Sequence[str] = (), tag: str | None = None
) -> dict[str, Any]:
    """Every pair of configurations (of those that `names` name; without one, of all) that `judge` has compared; the
    only judge where it is None.

    What it gives is like `cdpo.report.matrix.compare_all`'s, with `judge`: a `difference` is the share of prompts that
    b wins minus the share that a wins, averaged over seeds, so that a win rate is (1 + difference) / 2; `mean` of a run
    is the share that it won of its `n` comparisons (prompts, with each that it met), ties counting half. Wins, ties and
    losses are of prompts, each by its average over the seeds. `length_controlled` of a pair is b's win rate in percent
    if both answered at equal lengths, with its interval, or {why}.

    Raises UsageError for a name or judge that is unknown or ambiguous, CdpoError where nothing is compared.
    """
    reader = Reader(Store(Path(store)))
    refs = list(reader.store.read_refs(tag))
    if not refs:
        raise UsageError(f"there are no runs under the tag {tag!r}" if tag else "there are no runs yet")
    known = grouped([reader.run(ref) for ref in refs])
    chosen, copies = distinct([find_named(each, known, "configuration") for each in names] if names else known)
    matches = _of_judge(reader.matches(refs), judge)
    met: list[tuple[Group, Group, list[Column], int, list[Match]]] = []
    for a, b in combinations(chosen, 2):
        columns, asked, used = judged_seeds(a, b, matches)
        if columns:
            met.append((a, b, columns, asked, used))
    if not met:
        raise CdpoError(_nobody(chosen, matches[0].judge))
    members = [group for group in chosen if any(group in pair[:2] for pair in met)]
    places = {id(group): at for at, group in enumerate(members)}
    averaged = [average(columns) for _, _, columns, _, _ in met]
    ids = tuple(dict.fromkeys(each for column in averaged for each in column.ids))
    place = {each: at for at, each in enumerate(ids)}
    differences = np.full((len(met), len(ids)), np.nan)
    for row, column in zip(differences, averaged, strict=True):
        row[[place[each] for each in column.ids]] = column.values
    pairs = [(places[id(a)], places[id(b)]) for a, b, *_ in met]
    draw = np.random.default_rng(derive_seed(0, "compare", METRIC, matches[0].judge))
    compared = compare_pairs(pairs, differences, draw, clusters=prompts(ids))
    won = np.zeros((len(members), len(members)))
    told = []
    for pair, row, (_, b, columns, asked, used) in zip(compared, differences, met, strict=True):
        over_seeds = between_seeds([float(column.values.mean()) for column in columns])
        each = told_pair(pair, row, 1.0, np.zeros_like(won), over_seeds)
        rate = (1 + (pair.difference or 0.0)) / 2
        won[pair.b, pair.a] += rate * pair.n
        won[pair.a, pair.b] += (1 - rate) * pair.n
        controlled = _at_equal_lengths(used, b)
        told.append({**each, "missing": asked - pair.n, "win_rate": rate, "length_controlled": controlled})
    ranked = strengths(won)
    rates, counts = won.sum(axis=1), (won + won.T).sum(axis=1)
    runs = []
    for at, group in enumerate(members):
        seeds = sorted({run.seed for run in group.runs})
        mean = float(rates[at] / counts[at]) if counts[at] else float("nan")
        runs.append(told_run(at, group, seeds, mean, int(counts[at]), ranked))
    met_all = {frozenset((a.label, b.label)) for a, b, *_ in met}
    unmet = [f"{a.label} and {b.label}" for a, b in combinations(members, 2) if {a.label, b.label} not in met_all]
    return {
        "metric": METRIC,
        "judge": matches[0].judge,
        "split": matches[0].split,
        "better": "higher",
        "level": ALPHA,
        "power": POWER,
        "runs": runs,
        "pairs": told,
        "left_out": {
            **copies,
            **{group.label: f"{matches[0].judge} compared it with none" for group in chosen if group not in members},
            **dict.fromkeys(unmet, f"{matches[0].judge} did not compare them"),
        },
        "conditional_on": "the models of these seeds, their responses and the judge",
        "judged": [
            {"asked_about": f"{places[id(b)] + 1} - {places[id(a)] + 1}", **match.judging}
            for a, b, _, _, used in met
            for match in used
        ],
    }


def _of_judge(matches: Sequence[Match], judge: str | None) -> list[Match]:
    """The comparisons by one judge that were asked for in one way: of several ways, the one with most of them."""
    there = list(dict.fromkeys(each.judge for each in matches))
    if not there:
        raise CdpoError("no judge has compared runs yet: list WINRATE in `pipelines`, with a `judge`")
    if judge is None and len(there) > 1:
        raise UsageError(f"several judges have compared runs: name one with --judge: {', '.join(there)}")
    wanted = there[0] if judge is None else judge
    if wanted not in there:
        raise UsageError(f"no judge called {wanted!r} has compared runs; there are: {', '.join(there)}")
    own = [each for each in matches if each.judge == wanted]
    ways = [each.meaning for each in own]
    most = max(dict.fromkeys(ways), key=ways.count)
    return [each for each in own if each.meaning == most]


def judged_seeds(a: Group, b: Group, matches: Sequence[Match]) -> tuple[list[Column], int, list[Match]]:
    """For each seed that both have: by prompt, 1 where b wins, -1 where a does, 0 for a tie; how many prompts the judge
    was asked about; and the comparisons that these are from."""
    by_answers = {(each.first, each.second): each for each in matches}
    theirs = {run.seed: run.answers for run in b.runs}
    found: list[Column] = []
    used: list[Match] = []
    asked = 0
    for run in a.runs:
        if run.answers is None or theirs.get(run.seed) is None:
            continue
        other = str(theirs[run.seed])
        for match, sign in ((by_answers.get((run.answers, other)), -1.0), (by_answers.get((other, run.answers)), 1.0)):
            if match is not None and match.column is not None:
                found.append(Column(match.column.ids, sign * (2 * match.column.values - 1)))
                asked = max(asked, match.prompts)
                used.append(match)
    return found, asked, used


def _at_equal_lengths(used: Sequence[Match], b: Group) -> dict[str, Any]:
    """The win rate of `b`, in percent, if both had answered at equal lengths, over all seeds: prompts are drawn whole.
    {why} where nothing can be said."""
    wins: list[float | None] = []
    lengths: list[list[int]] = [[], []]
    clusters = []
    answers = {run.answers for run in b.runs}
    for match in used:
        if match.column is None or len(match.lengths) < len(LENGTHS):
            return {"why": "the lengths of the responses are not known"}
        ids, table = align([match.column, *(match.lengths[name] for name in LENGTHS)])
        ours = 0 if match.first in answers else 1
        wins += [float(each if ours == 0 else 1 - each) for each in table[0]]
        for place, of in enumerate((1 + ours, 2 - ours)):
            lengths[place] += [round(each) for each in table[of]]
        clusters += [each.partition(".")[0] for each in ids]
    draw = np.random.default_rng(derive_seed(0, "compare", "length", b.label))
    return at_equal_lengths(wins, lengths[0], lengths[1], clusters, draw)


def _nobody(chosen: Sequence[Group], judge: str) -> str:
    labels = " and ".join(group.label for group in chosen[:4]) + (", ..." if len(chosen) > 4 else "")
    more = ""
    if all(group.having("judge/winrate/chosen") for group in chosen) and len(chosen) > 1:
        more = "; by their wins over the chosen responses: --metric judge/winrate/chosen"
    return f"{judge} has not compared {labels} with each other: list WINRATE in `pipelines`{more}"
