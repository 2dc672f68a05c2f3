"""What the finished steps of a store say: each run's metrics with intervals, configurations over seeds, comparisons.

Which numbers: the metrics of a run's evaluation steps and of its method's training step (a DPO run shows no SFT loss),
all on the split that was generated for; `eval` where nothing was generated, and for training metrics where the split is
`train`. A reward model's own accuracy is listed by itself.

Intervals are over prompts and hold fixed everything else: the seeds, the trained models, the sampled responses, the
reward model. A configuration's values are first averaged over its seeds, prompt by prompt; what other seeds would have
given is another interval (`between_seeds`). cdpo/stats/ has the rules.

Where an experiment has `select`, only the values that were best on its split are shown, on the other one (select.py).
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cdpo.config.canonical import canonical_json
from cdpo.errors import CdpoError, UsageError
from cdpo.plan.names import parameter_parts
from cdpo.report.index import Index, index_of, stamp_of
from cdpo.report.reading import JUDGED, LM_EVAL, Metric, Reader, RunScores
from cdpo.report.select import Choice, choose, lower_is_better
from cdpo.stats.intervals import estimate
from cdpo.stats.matrix import ALPHA
from cdpo.stats.paired import Column, align, average, between_seeds, paired, prompts
from cdpo.store import Store

#: of more configurations than these, each pair is not compared unasked
MOST_COMPARED = 8
PARTS = ("runs", "groups", "reward_models", "selections", "comparisons", "judges")


def collect(
    store: str | Path, tag: str | Sequence[str] | None = None, select: bool = True, parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """Everything that `cdpo results --json` prints: `runs`, `groups` (configurations, over seeds) and `reward_models`;
    or those of its `parts` that are asked for, which is quicker where a store is large.

    `judged` of a run tells of each judge that was asked about it how consistent its verdicts are in both orders, which
    place it prefers, how many verdicts are missing and how many pairs were the same text.

    A metric is {mean, low, high, n, split, conditional_on}, and where several rewards score a run its name has the
    reward's behind its first part (`reward/PP/mean`); a group's has `seeds` and `between_seeds` too. `versus` of
    a group compares it, prompt by prompt, with the group of the policies that its training started from (SFT).

    `selections` say which values were chosen where a tasks file has `select`, and from which; `comparisons` compare the
    chosen configurations with each other in the metric they were chosen by. `judges` are those that compared runs side
    by side, with the number of such pairs. `select=False` shows all runs.
    """
    opened = Store(Path(store))
    index = index_of(opened)
    stamp = stamp_of(opened)
    places = {part: f"{stamp} {json.dumps([part, tag, select])}" for part in PARTS}
    # each part by itself, because whoever shows one of them need not read the others
    kept = index.look("collected", [places[part] for part in parts])
    if kept is not None:
        return dict(zip(parts, kept, strict=True))
    found = _collect(opened, index, [tag] if isinstance(tag, str) else tag, select)
    for part, place in places.items():
        index.keep("collected", place, found[part])
    # what is of runs and steps that are gone is of no use any more, nor what the store was before
    index.save(() if tag else ("step", "estimate", "difference"), ("collected", stamp))
    return {part: found[part] for part in parts}


def _collect(store: Store, index: Index, tags: Sequence[str] | None, select: bool) -> dict[str, Any]:
    reader = Reader(store, index)
    refs = [ref for tag in tags for ref in store.read_refs(tag)] if tags else store.read_refs()
    runs = [reader.run(ref) for ref in refs]
    choices: list[Choice] = []
    every = runs
    if select:
        runs, choices = choose(runs)
    groups = grouped(runs)
    by_policy: dict[str | None, list[Group]] = {}
    for group in groups:
        by_policy.setdefault(group.runs[0].policy, []).append(group)
    return {
        "runs": [_run_entry(run, index) for run in runs],
        "groups": [_group_entry(group, by_policy, index) for group in groups],
        "reward_models": [_reward_model_entry(run, index) for run in reader.reward_models(every)],
        "selections": [choice.described() for choice in choices if choice.swept],
        "comparisons": _comparisons(choices, groups, index),
        "judges": reader.judges(refs),
    }


def collect_run(store: Store, ref: dict[str, Any]) -> dict[str, Any]:
    """One run as `collect` has it: its state, its metrics with their intervals over prompts, its marks."""
    reader = Reader(store)
    entry = _run_entry(reader.run(ref), reader.index)
    reader.index.save()
    return entry


def compare(store: str | Path, a: str, b: str, tag: str | None = None) -> dict[str, Any]:
    """`a` minus `b`, paired by prompt, for every metric that both have; each is the name of a run or of a configuration
    (or `tag/name`). A configuration's values are averaged over its seeds.

    Gives {a, b, metrics: {NAME: {a_mean, b_mean, difference, low, high, p, n, wins, ties, losses, unpaired,
    conditional_on, between_seeds, verdict}}, not_compared: {NAME: why}}. Raises UsageError for a name that is unknown
    or ambiguous, CdpoError where the two share no metric.
    """
    index = index_of(Store(Path(store)))
    one, other = find_two(store, a, b, tag, index)
    metrics, not_compared = _differences(one, other, index)
    index.save()
    if not metrics:
        why = "; ".join(f"{name}: {reason}" for name, reason in not_compared.items())
        if not why and one.metrics and other.metrics:
            why = f"one has {', '.join(one.metrics)}, the other {', '.join(other.metrics)}"
            if {*one.metrics} & {*other.metrics}:
                why = f"{', '.join(name for name in one.metrics if name in other.metrics)}: the very same values"
        why = why or "one of them has no results yet"
        raise CdpoError(f"{one.label} and {other.label} cannot be compared: {why}")
    for name, value in metrics.items():
        value["verdict"] = _in_words(name, value)
    return {"a": one.label, "b": other.label, "metrics": metrics, "not_compared": not_compared}


def _in_words(metric: str, value: Mapping[str, Any]) -> str:
    """`A > B` where A is better, `B > A`, or `not resolved`: by the test over prompts of this metric alone."""
    if value["p"] is None or value["p"] >= ALPHA:
        return "not resolved"
    better = value["difference"] < 0 if lower_is_better(metric) else value["difference"] > 0
    return "A > B" if better else "B > A"


#: what the dataset's own responses score: the same for every policy, so there is nothing to compare
REFERENCE = ("reward/chosen", "gold/chosen")


class Group:
    """Runs that differ in nothing but their seed."""

    def __init__(self, runs: Sequence[RunScores], name: str | None = None) -> None:
        self.runs = sorted(runs, key=lambda run: run.seed)
        self.tag = runs[0].tag
        self.name = name or _common_name(self.runs)
        self.label = f"{self.tag}/{self.name}"
        self.metrics = list(dict.fromkeys(name for run in self.runs for name in run.metrics))

    @property
    def settings(self) -> dict[str, Any]:
        """Every value that the training of its method had; {} where none of its runs has trained."""
        return next((run.settings for run in self.runs if run.settings), {})

    def rename(self, name: str) -> None:
        self.name, self.label = name, f"{self.tag}/{name}"

    def having(self, metric: str) -> list[RunScores]:
        return [run for run in self.runs if metric in run.metrics]


def find_two(
    store: str | Path, a: str, b: str, tag: str | None = None, index: Index | None = None
) -> tuple[Group, Group]:
    """Two runs or configurations by their names; a run is a group of itself alone. Raises UsageError."""
    reader = Reader(Store(Path(store)), index)
    runs = [reader.run(ref) for ref in reader.store.read_refs(tag)]
    known = [Group([run], run.name) for run in runs] + [
        group for group in grouped(runs) if group.name not in _names(runs)
    ]
    return find_named(a, known, "run or configuration"), find_named(b, known, "run or configuration")


def distinct(
    groups: Sequence[Group], values: Callable[[Group], Any] = lambda group: None
) -> tuple[list[Group], dict[str, str]]:
    """The groups without those that are made of the same policies and responses as an earlier one, under another tag or
    evaluated in another way besides, and have the same `values`; and why each of these is left out."""
    first: dict[Any, Group] = {}
    copies = {}
    for group in groups:
        made = tuple((run.seed, run.policy, run.answers, *([] if run.answers else run.steps)) for run in group.runs)
        same = (made, values(group))
        if same in first:
            copies[group.label] = f"is {first[same].label} once more: the same steps"
        else:
            first[same] = group
    return list(first.values()), copies


def grouped(runs: Iterable[RunScores]) -> list[Group]:
    """The runs by what they compute but for their seeds: two that only share a name are never averaged."""
    found: dict[str, list[RunScores]] = {}
    for run in runs:
        params = {name: value for name, value in run.params.items() if name != "seed"}
        identity = canonical_json([run.tag, run.method, run.model, run.dataset, params, run.recipe])
        found.setdefault(identity, []).append(run)
    groups = [Group(members) for members in found.values()]
    names = Counter(group.label for group in groups)
    for group in groups:
        if names[group.label] > 1:
            group.rename(f"{group.name}~{group.runs[0].recipe[:6]}")
    return groups


def _common_name(runs: Sequence[RunScores]) -> str:
    """The runs' name without its seed; a name that was cut has none, and then the first one's stands for all."""
    stripped = {re.sub(rf"_s{run.seed}$", "", run.name) for run in runs}
    return stripped.pop() if len(stripped) == 1 else f"{runs[0].name} and {len(runs) - 1} more seeds"


def seeds_of(runs: Sequence[RunScores]) -> str:
    seeds = ", ".join(str(run.seed) for run in runs)
    return f"seed {seeds}" if len(runs) == 1 else f"seeds {seeds}"


def scorer(metric: str) -> str:
    """Who gave the scores of a metric, in words."""
    return "the judge" if metric.startswith(JUDGED) else "the reward model"


def _fixed(runs: Sequence[RunScores], metric: str) -> str:
    of = runs[0].metrics[metric]
    own = " (each seed has its own)" if len(meanings(runs, metric)) > 1 else ""
    averaged = "" if len(runs) == 1 else ", each averaged over the seeds"
    return f"{_what(runs, metric, of.training or of.alone)}{own}; the interval is over prompts{averaged}"


def _what(runs: Sequence[RunScores], metric: str, alone: bool) -> str:
    what = "the trained model" if alone else f"the model, its responses and {scorer(metric)}"
    return f"{seeds_of(runs)}: {what}"


def _figures(runs: Sequence[RunScores]) -> dict[str, dict[str, Any]]:
    """What the steps of `runs` worked out themselves, averaged over the seeds; with an interval where there is one seed
    alone, for intervals of several are not those of their mean."""
    found = {}
    for name in dict.fromkeys(name for run in runs for name in run.figures):
        having = [run for run in runs if name in run.figures]
        each = [run.figures[name] for run in having]
        low, high = (each[0].low, each[0].high) if len(each) == 1 else (None, None)
        over_seeds = between_seeds([one.mean for one in each])
        found[name] = {
            "mean": sum(one.mean for one in each) / len(each),
            "low": low,
            "high": high,
            "n": min(one.n for one in each),
            "conditional_on": f"{_what(having, name, each[0].alone)}; the interval is over prompts",
            "split": each[0].split,
            "seeds": [run.seed for run in having],
            "between_seeds": over_seeds and asdict(over_seeds),
        }
    return found


def _is_rate(metric: str, column: Column) -> bool:
    if metric.startswith(LM_EVAL):  # whose names are lm-eval's
        return bool(((column.values >= 0) & (column.values <= 1)).all())
    return "winrate" in metric or "accurac" in metric


def _estimate(runs: Sequence[RunScores], metric: str, index: Index) -> dict[str, Any] | None:
    fixed, split = _fixed(runs, metric), runs[0].metrics[metric].split
    kind = runs[0].metrics[metric].kind

    def work_out() -> dict[str, Any] | None:
        column = average([run.metrics[metric].column for run in runs])
        if not column.ids:
            return None
        clusters = prompts(column.ids)
        rate = _is_rate(kind, column)
        return asdict(estimate(column.values, conditional_on=fixed, rate=rate, clusters=clusters))

    found = index.remember("estimate", f"{kind} {_sources(runs, metric)} {fixed}", work_out)
    return found and {**found, "split": split}


def _sources(runs: Sequence[RunScores], metric: str) -> str:
    return " ".join(f"{run.seed}:{run.metrics[metric].source}" for run in runs)


def described(run: RunScores) -> dict[str, Any]:
    """What was computed, but for the seed."""
    return {name: getattr(run, name) for name in ("method", "model", "dataset", "params")}


def _run_entry(run: RunScores, index: Index) -> dict[str, Any]:
    metrics = {name: _estimate([run], name, index) for name in run.metrics}
    about = ("seeds", "between_seeds")
    figures = {
        name: {part: value[part] for part in value if part not in about} for name, value in _figures([run]).items()
    }
    return {
        "name": run.name,
        "tag": run.tag,
        "seed": run.seed,
        **described(run),
        "state": run.state,
        "training_seconds": [] if run.training_seconds is None else [run.training_seconds],
        "settings": run.settings,
        "steps": run.steps,
        "judged": run.judged,
        "marks": run.marks,
        "metrics": {name: value for name, value in metrics.items() if value is not None} | figures,
    }


def _group_entry(group: Group, by_policy: Mapping[str | None, Sequence[Group]], index: Index) -> dict[str, Any]:
    metrics = {}
    for name in group.metrics:
        having = group.having(name)
        value = _estimate(having, name, index)
        if value is not None:
            over_seeds = between_seeds([run.metrics[name].mean for run in having])
            value["seeds"] = [run.seed for run in having]
            value["between_seeds"] = over_seeds and asdict(over_seeds)
            metrics[name] = value
    return {
        "name": group.name,
        "tag": group.tag,
        "seeds": [run.seed for run in group.runs],
        "runs": [run.name for run in group.runs],
        **described(group.runs[0]),
        "state": "done" if all(run.state == "done" for run in group.runs) else "unfinished",
        "training_seconds": [run.training_seconds for run in group.runs if run.training_seconds is not None],
        "settings": group.settings,
        "marks": list(dict.fromkeys(mark for run in group.runs for mark in run.marks)),
        "metrics": metrics | _figures(group.runs),
        "versus": _versus(group, by_policy.get(group.runs[0].started_from, []), index),
    }


def _reward_model_entry(run: RunScores, index: Index) -> dict[str, Any]:
    metrics = {name: _estimate([run], name, index) for name in run.metrics}
    return {"name": run.name, "key": run.steps[-1], "seed": run.seed, "metrics": metrics}


def _versus(group: Group, groups: Sequence[Group], index: Index) -> dict[str, Any] | None:
    """The group against that of the policies its runs' training started from; None where there is no such group."""
    baselines = [other for other in groups if _started_from(group, other)]
    if len(baselines) != 1:
        return None
    metrics, not_compared = _differences(group, baselines[0], index, lambda metric: not metric.training)
    return {"name": baselines[0].name, "metrics": metrics, "not_compared": not_compared} if metrics else None


def _started_from(group: Group, other: Group) -> bool:
    """Whether `other` evaluates, in the same way, the policies from which the runs of `group` were trained."""
    by_seed = {run.seed: run for run in other.runs}
    return group.tag == other.tag and all(
        run.seed in by_seed
        and run.started_from is not None
        and run.started_from == by_seed[run.seed].policy
        and run.evaluation == by_seed[run.seed].evaluation
        for run in group.runs
    )


def _differences(
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

    key = f"{_sources(ours, metric)} minus {_sources(theirs, metric)} {fixed}"
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


def _comparisons(choices: Sequence[Choice], groups: Sequence[Group], index: Index) -> list[dict[str, Any]]:
    """The chosen configurations against each other, in the metric that they were chosen by: later minus earlier."""
    of = {id(run): group for group in groups for run in group.runs}
    rooms: dict[tuple[str, ...], list[Group]] = {}
    for choice in choices:
        shown = list({id(of[id(run)]): of[id(run)] for run in choice.shown}.values())
        settled = choice.chosen is not None or not choice.swept
        if settled and len(shown) == 1:
            run = shown[0].runs[0]
            rooms.setdefault((run.tag, run.model, run.dataset, choice.metric), []).extend(shown)
    metrics = {choice.metric for choice in choices if choice.swept}
    found = []
    for (*_, metric), room in rooms.items():
        members = [group for group in room if group.having(metric)]
        if metric not in metrics or len(members) > MOST_COMPARED:
            continue
        labels = _short_labels(members)
        for at, group in enumerate(members):
            for before, other in enumerate(members[:at]):
                compared, _ = _differences(group, other, index, metrics={metric})
                if compared:
                    pair = {"a": group.name, "b": other.name, "a_label": labels[at], "b_label": labels[before]}
                    found.append({**pair, "tag": group.tag, "metrics": compared})
    return found


def _short_labels(groups: Sequence[Group]) -> list[str]:
    """The method of each, with those parameters in which configurations of one method differ."""
    labels = []
    for group in groups:
        same = [other.runs[0].params for other in groups if other.runs[0].method == group.runs[0].method]
        swept = [name.removeprefix(f"{group.runs[0].method}.") for name in (group.runs[0].select or {})["over"]]
        own = {
            name: value
            for name, value in group.runs[0].params.items()
            if name not in swept and any(name not in params or params[name] != value for params in same)
        }
        labels.append(" ".join([group.runs[0].method, *parameter_parts(own)]))
    return labels


def _names(named: Iterable[Any]) -> set[str]:
    return {each.name for each in named}


def find_named(name: str, known: Sequence[Any], what: str) -> Any:
    """The one of `known` (things with `name` and `label`) that is called `name` or `tag/name`."""
    found = [each for each in known if name in (each.name, each.label)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} is the name of several; say which: {', '.join(each.label for each in found)}")
    close = difflib.get_close_matches(name, [*_names(known), *(each.label for each in known)], n=3)
    close = close or sorted(each.label for each in known if name.lower() in each.label.lower())[:3]
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; `cdpo results` lists them"
    raise UsageError(f"there is no {what} called {name!r}{hint}")
