"""Two runs beside each other: who is better by every metric and judge, and who is on which prompt.

Nothing is read but the steps of the runs that are compared; which runs there are is known from their refs.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cdpo.plan.names import show_value
from cdpo.report.differences import paired_differences
from cdpo.report.groups import Group, grouped
from cdpo.report.index import Index
from cdpo.report.judged import judged_seeds
from cdpo.report.reading import Match, Reader, RunScores
from cdpo.report.select import lower_is_better
from cdpo.stats.matrix import ALPHA
from cdpo.stats.paired import Column, average, between_seeds, paired
from cdpo.store import Store
from cdpo.store.names import short


def configurations(refs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Each configuration by its label `tag/name` -> the refs of its runs, by seed."""
    runs = [
        RunScores(
            **{name: ref[name] for name in ("name", "tag", "seed", "method", "model", "dataset", "params", "steps")},
            marks=[],
            state="",
            recipe=ref.get("recipe", ""),
        )
        for ref in refs
    ]
    of = {id(run): dict(ref) for run, ref in zip(runs, refs, strict=True)}
    return {group.label: [of[id(run)] for run in group.runs] for group in grouped(runs)}


def listed(refs: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What can be compared: each run, and each configuration that has several seeds, by its label `tag/name` -> the
    refs of its runs. A configuration stands before its runs."""
    names = {label_of(ref) for ref in refs}
    found: dict[str, list[dict[str, Any]]] = {}
    for label, members in configurations(refs).items():
        if len(members) > 1 and label not in names:
            found[label] = members
        found |= {label_of(ref): [ref] for ref in members}
    return found


def label_of(ref: Mapping[str, Any]) -> str:
    return f"{ref['tag']}/{ref['name']}"


def first_two(known: Mapping[str, Sequence[Mapping[str, Any]]], finished: Container[str]) -> tuple[str, str] | None:
    """Which two of `listed` are shown unasked: what others are trained from, and the first other of its tag. Those
    whose steps are all `finished` (by their short keys) go before; None where there are not two."""
    done = [
        label for label, refs in known.items() if all(short(key) in finished for ref in refs for key in ref["steps"])
    ]
    for labels in (done, list(known)):
        for base in sorted(labels, key=lambda label: known[label][0]["method"] not in BASELINES):
            of = known[base][0]
            own = {label_of(ref) for ref in known[base]}
            others = [
                label
                for label in labels
                if known[label][0]["tag"] == of["tag"] and own.isdisjoint(map(label_of, known[label]))
            ]
            # two runs of one method only where there is nothing else
            others.sort(key=lambda label: known[label][0]["method"] == of["method"])
            if others:
                return base, others[0]
    labels = list(known)
    return (labels[0], labels[1]) if len(labels) > 1 else None


#: the methods that others are trained from, or that train nothing
BASELINES = ("BASE", "SFT")


def what_differs(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]] = ({}, {})
) -> tuple[list[tuple[str, str, str]], list[tuple[str, str]]]:
    """In what two of `listed` differ, as (name, of a, of b), and what they share, as (name, value). What one of them
    names in its task is looked up in the other's `settings` (RunScores); "" where it is not there either."""
    told = [_told(refs) for refs in (a, b)]
    named = {name for refs in (a, b) for name in refs[0]["params"] if name != "seed"}
    for own, given in zip(told, settings, strict=True):
        own.update({name: show_value(given[name]) for name in sorted(named) if name not in own and name in given})
    names = list(dict.fromkeys([*told[0], *told[1]]))
    pairs = [(name, told[0].get(name, ""), told[1].get(name, "")) for name in names]
    return [pair for pair in pairs if pair[1] != pair[2]], [pair[:2] for pair in pairs if pair[1] == pair[2]]


def _told(refs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    about = {name: str(refs[0][name]) for name in ("method", "model", "dataset", "tag")}
    params = {name: show_value(value) for name, value in refs[0]["params"].items() if name != "seed"}
    return {**about, **params, "seed": ", ".join(str(seed) for seed in sorted({ref["seed"] for ref in refs}))}


@dataclass(frozen=True)
class Beside:
    """Runs or configurations with what their steps measured, and what judges said of them side by side."""

    groups: list[Group]
    matches: list[Match]
    index: Index


def read(store: Store, chosen: Mapping[str, Sequence[dict[str, Any]]]) -> Beside:
    """Reads those of `listed` that are chosen, and nothing else."""
    reader = Reader(store)
    runs: dict[str, RunScores] = {}  # one that is chosen by itself and as one of a configuration is read once
    groups = []
    for label, refs in chosen.items():
        members = [runs.setdefault(label_of(ref), reader.run(ref)) for ref in refs]
        groups.append(Group(members, label.partition("/")[2]))
    return Beside(groups, reader.matches(ref for refs in chosen.values() for ref in refs), reader.index)


def differences(beside: Beside, a: Group, b: Group) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By metric, and by `judge NAME` for those who saw both: {a_mean, b_mean, difference, low, high, p, n, wins, ties,
    losses, unpaired, conditional_on, between_seeds, better, verdict}; and why other metrics are not compared.

    `difference` is b minus a and `wins` are the prompts on which b has the higher value; `better` is "a", "b" (by a
    metric of NEUTRAL: which is higher) or None where it is not resolved by this metric's own test over prompts, and
    `verdict` says it in words. By a judge the means are shares of prompts that were won, ties counting half, and the
    difference is the share that b won minus the share that a won; `position` is what is known of how the judge's
    verdicts hang on the order.
    """
    found, why = paired_differences(b, a, beside.index)
    for value in found.values():
        value["a_mean"], value["b_mean"] = value["b_mean"], value["a_mean"]
    beside.index.save()
    found |= _by_judges(beside.matches, a, b)
    for name, value in found.items():
        value["better"] = _better(name, value)
        value["verdict"] = in_words(name, value)
    return found, why


def _by_judges(matches: Sequence[Match], a: Group, b: Group) -> dict[str, dict[str, Any]]:
    found = {}
    for judge in dict.fromkeys(each.judge for each in matches):
        own = [each for each in matches if each.judge == judge]
        columns, asked, used = judged_seeds(a, b, [each for each in own if each.meaning == own[0].meaning])
        if not columns:
            continue
        mean = average(columns)
        fixed = "the models, their responses and the judge; the interval is over prompts, paired"
        value = paired(mean, Column(mean.ids, np.zeros(len(mean.ids))), conditional_on=fixed)
        if value is None:
            continue
        over_seeds = between_seeds([float(column.values.mean()) for column in columns])
        rate = (1 + value.difference) / 2
        found[f"{SIDE_BY_SIDE}{judge}"] = {
            **asdict(value),
            "a_mean": 1 - rate,
            "b_mean": rate,
            "unpaired": asked - value.n,
            "between_seeds": over_seeds and asdict(over_seeds),
            "position": [each.judging for each in used],
        }
    return found


#: metrics of training of which neither a high nor a low value is good by itself
NEUTRAL = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
#: what the name of a judge who saw both responses stands behind
SIDE_BY_SIDE = "judge "


def _better(name: str, value: Mapping[str, Any]) -> str | None:
    if value["p"] is None or value["p"] >= ALPHA or value["difference"] == 0:
        return None
    return "b" if better_sign(name) * value["difference"] > 0 else "a"


def better_sign(metric: str) -> float:
    """1.0 where a higher value is better, -1.0 where a lower one is."""
    return -1.0 if lower_is_better(metric) else 1.0


def who(metric: str, value: Mapping[str, Any]) -> str:
    """`B is better`, or `higher` by a metric that knows no better; or `not resolved`."""
    if value["better"] is None:
        return "not resolved"
    return f"{value['better'].upper()} is {'higher' if metric in NEUTRAL else 'better'}"


def in_words(metric: str, value: Mapping[str, Any], what: str = "") -> str:
    """Who is better and by how much of `what`, or that this is not resolved.

    >>> in_words("gold/mean", {"better": "b", "difference": 0.104, "low": 0.0893, "high": 0.119}, "gold reward")
    'B is better: +0.10 gold reward (95 % +0.09 to +0.12)'
    """
    low, high = value["low"], value["high"]
    digits = _digits([value["difference"]] if low is None else [(high - low) / 2])
    told = who(metric, value)
    told = f"{told[0].upper()}{told[1:]}: {signed(value['difference'], digits)}{' ' if what else ''}{what}"
    return told if low is None else f"{told} (95 % {signed(low, digits)} to {signed(high, digits)})"


def _digits(sizes: Sequence[float]) -> int:
    """Places after the point that show one significant digit of the smallest size, two at least."""
    smallest = min((abs(size) for size in sizes if size), default=1.0)
    return min(8, max(2, -math.floor(math.log10(smallest))))


def signed(value: float, digits: int = 2) -> str:
    """With its sign, as typeset."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")
