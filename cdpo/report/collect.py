"""What the finished steps of a store say: each run's metrics with intervals, configurations over seeds, comparisons.

Which numbers: the metrics of a run's evaluation steps and of its method's training step (a DPO run shows no SFT loss),
all on the split that was generated for; `eval` where nothing was generated, and for training metrics where the split is
`train`. A reward model's own accuracy is listed by itself.

Intervals are over prompts and hold fixed everything else: the seeds, the trained models, the sampled responses, the
reward model. A configuration's values are first averaged over its seeds, prompt by prompt; what other seeds would have
given is another interval (`between_seeds`). cdpo/stats/ has the rules.

Where an experiment has `select`, only the values that were best on its split are shown, on the other one (select.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cdpo.errors import CdpoError
from cdpo.plan.names import parameter_parts
from cdpo.report.differences import meanings, paired_differences, scorer, sources
from cdpo.report.groups import Group, described, find_two, grouped, seeds_of
from cdpo.report.index import Index, index_of, stamp_of
from cdpo.report.reading import LM_EVAL, Reader, RunScores
from cdpo.report.select import Choice, choose, lower_is_better
from cdpo.stats.intervals import estimate
from cdpo.stats.matrix import ALPHA
from cdpo.stats.paired import Column, average, between_seeds, prompts
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
    metrics, not_compared = paired_differences(one, other, index)
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

    found = index.remember("estimate", f"{kind} {sources(runs, metric)} {fixed}", work_out)
    return found and {**found, "split": split}


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
    metrics, not_compared = paired_differences(group, baselines[0], index, lambda metric: not metric.training)
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
                compared, _ = paired_differences(group, other, index, metrics={metric})
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
