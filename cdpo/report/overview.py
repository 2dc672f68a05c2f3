"""The rows of a table of results, of what `cdpo.report.collect.collect` gives: configurations, runs, or groups of runs.

A value of a configuration or run has an interval; one of a group of runs has a spread, its lowest and highest run.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdpo.config.canonical import canonical_json
from cdpo.pipeline import pipelines
from cdpo.plan.names import show_value
from cdpo.report.select import lower_is_better

#: Greek letters for the parameters of the released package
GREEK = {"beta": "β", "rho": "ρ", "pi": "π", "gamma": "γ", "omega": "ω"}
#: what else tells rows apart, in this order, before their parameters
SETUP = ("method", "model", "dataset", "tag")
#: how metrics are called in words; a label of one of several rewards stands behind
WORDS = {
    "loss": "validation loss",
    "rewards/accuracies": "reward accuracy",
    "rewards/margins": "reward margin",
    "rewards/chosen": "implicit reward, chosen",
    "rewards/rejected": "implicit reward, rejected",
    "logps/chosen": "log-probability, chosen",
    "logps/rejected": "log-probability, rejected",
    "reward/mean": "reference reward",
    "reward/chosen": "reference reward, chosen",
    "winrate/chosen": "win rate against chosen",
    "gold/mean": "gold reward",
    "gold/chosen": "gold reward, chosen",
    "gold/winrate/chosen": "gold win rate against chosen",
    "judge/winrate/chosen": "judge's win rate against chosen",
    "judge/lc_winrate/chosen": "judge's win rate, equal lengths",
    "judge/margin/chosen": "judge's margin over chosen",
    "judge/rating": "judge's rating",
}
#: those that are about the run itself and are shown unasked, in this order; so are all that have no words here
FIRST = ("gold/mean", "judge/winrate/chosen", "judge/lc_winrate/chosen", "judge/rating", "winrate/chosen",
         "reward/mean", "rewards/accuracies", "rewards/margins", "loss")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One metric of one row. `low` and `high` are a 95 % interval's ends, or the lowest and the highest run of a group;
    None where there is none."""

    mean: float
    low: float | None
    high: float | None
    #: prompts (or pairs) that were averaged; seeds, or runs of a group, where the ends are over these
    n: int
    #: runs that have it
    runs: int
    split: str
    #: what the interval is over, and what it holds fixed
    conditional_on: str


@dataclass(frozen=True)
class Row:
    #: method, model, dataset, tag: where the runs of a group agree on it
    setup: dict[str, str]
    params: dict[str, Any]
    seeds: list[int]
    state: str
    marks: list[str]
    #: `tag/name` of the row itself, and of its runs
    label: str
    runs: list[str]
    cells: dict[str, Cell] = field(default_factory=dict)
    #: of the training of each run's own method, of those that have trained
    seconds: list[float] = field(default_factory=list)


# -- rows --------------------------------------------------------------------------------------------------------------


def configuration_rows(collected: Mapping[str, Any], over: str = "prompts") -> list[Row]:
    """One row per configuration; intervals `over` prompts, or over its seeds."""
    rows = [
        _row(entry, entry["seeds"], [f"{entry['tag']}/{name}" for name in entry["runs"]], over)
        for entry in collected["groups"]
    ]
    return _in_order(rows, [entry["settings"] for entry in collected["groups"]])


def run_rows(collected: Mapping[str, Any]) -> list[Row]:
    """One row per run; intervals over prompts."""
    rows = [_row(entry, [entry["seed"]], [f"{entry['tag']}/{entry['name']}"]) for entry in collected["runs"]]
    return _in_order(rows, [entry["settings"] for entry in collected["runs"]])


def _in_order(rows: Sequence[Row], settings: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Sorted, and what one row has from its task and another from its method's mapping or a default stands in both, so
    that two methods do not seem to differ in nothing but their names."""
    named = dict.fromkeys(name for row in rows for name in row.params)
    for row, own in zip(rows, settings, strict=True):
        row.params.update({name: own[name] for name in named if name not in row.params and name in own})
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    """By tag and method, then by the parameters: numbers by their size, where names would put 1e-05 behind 0.0001."""
    setup = (row.setup["tag"], row.setup["method"], row.setup["model"], row.setup["dataset"])
    values = [
        (name, not _is_number(value), value if _is_number(value) else 0, shown(value))
        for name, value in sorted(row.params.items())
    ]
    return (*setup, values, row.seeds, row.label)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _row(entry: Mapping[str, Any], seeds: list[int], runs: list[str], over: str = "prompts") -> Row:
    cells = {}
    for name, value in entry["metrics"].items():
        ends = value if over == "prompts" else value["between_seeds"]
        n = value["n"] if over == "prompts" else len(value["seeds"])
        low, high = (None, None) if ends is None else (ends["low"], ends["high"])
        fixed = value["conditional_on"] if ends is None else ends["conditional_on"]
        cells[name] = Cell(value["mean"], low, high, n, len(value.get("seeds", seeds)), value["split"], fixed)
    return Row(
        setup={name: str(entry[name]) for name in SETUP},
        params=_params(entry),
        seeds=seeds,
        state=entry["state"],
        marks=list(entry["marks"]),
        label=f"{entry['tag']}/{entry['name']}",
        runs=runs,
        cells=cells,
        seconds=entry["training_seconds"],
    )


def _params(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Without the seed, and without the method's own name before those that it has itself."""
    own = f"{entry['method']}."
    return {name.removeprefix(own): value for name, value in entry["params"].items() if name != "seed"}


def group_rows(rows: Sequence[Row], by: Sequence[str]) -> list[Row]:
    """Rows of runs (`run_rows`) that agree in `by` (of SETUP, `seed`, or parameters) as one: the mean over them.

    A run that two tags share counts once. What training measured is not averaged over methods, and nothing over splits:
    there is no cell then.
    """
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(canonical_json([_axis(row, name) for name in by]), []).append(row)
    return [_group(members, by) for members in found.values()]


def _group(rows: Sequence[Row], by: Sequence[str]) -> Row:
    first = rows[0]
    methods = {row.setup["method"] for row in rows}
    cells = {}
    for name in metrics_of(rows):
        # two tags that asked for the same share its steps, and so its value to the last digit
        values = {
            canonical_json([{**row.setup, "tag": ""}, row.params, row.seeds, cell.mean]): cell
            for row in rows
            if (cell := row.cells.get(name)) is not None
        }
        splits = {cell.split for cell in values.values()}
        if len(splits) > 1 or (len(methods) > 1 and of_training(name)):
            continue
        means = [cell.mean for cell in values.values()]
        what = "the mean over runs, and the lowest and the highest of them; no interval"
        mean, runs = math.fsum(means) / len(means), len(means)
        cells[name] = Cell(mean, min(means), max(means), runs, runs, splits.pop(), what)
    return Row(
        setup={name: first.setup[name] for name in SETUP if len({row.setup[name] for row in rows}) == 1},
        params={name: _axis(first, name) for name in by if name not in (*SETUP, "seed") and name in first.params},
        seeds=sorted({seed for row in rows for seed in row.seeds}),
        state="done" if all(row.state == "done" for row in rows) else "unfinished",
        marks=list(dict.fromkeys(mark for row in rows for mark in row.marks)),
        label=", ".join(f"{greek(name)} {shown(_axis(first, name)) or 'not set'}" for name in by),
        runs=[label for row in rows for label in row.runs],
        cells=cells,
        seconds=[each for row in rows for each in row.seconds],
    )


def _axis(row: Row, name: str) -> Any:
    """What a row is in one respect; None for a parameter that it has not, and where the runs of a group differ."""
    return row.seeds if name == "seed" else row.setup.get(name) if name in SETUP else row.params.get(name)


def axes(rows: Sequence[Row]) -> list[str]:
    """In what rows differ: of SETUP, `seed`, and their parameters."""
    names = [*SETUP, "seed", *dict.fromkeys(name for row in rows for name in row.params)]
    return [name for name in names if len({_hashed(_axis(row, name)) for row in rows}) > 1]


def _hashed(value: Any) -> Any:
    """Equal for equal values alone: 1 and true are two, as in their file."""
    return (type(value), value) if value is None or isinstance(value, str | int | float) else canonical_json(value)


# -- columns -----------------------------------------------------------------------------------------------------------


def metrics_of(rows: Iterable[Row]) -> list[str]:
    """All metrics that a row has, those first that say most."""
    found = dict.fromkeys(name for row in rows for name in row.cells)
    places = {name: at for at, name in enumerate(WORDS)}
    return sorted(found, key=lambda name: (_place(name), places.get(plain_name(name), len(places))))


def _place(metric: str) -> int:
    name = plain_name(metric)
    return FIRST.index(name) if name in FIRST else len(FIRST) + (name in WORDS)


def shown_unasked(rows: Sequence[Row], metrics: Sequence[str], most: int = 8) -> list[str]:
    """At most `most` of `metrics`: of those that differ between rows, what the runs themselves were measured by; first
    those that most rows have."""
    found = []
    for name in metrics:
        values = {row.cells[name].mean if name in row.cells else None for row in rows}
        if (len(values) > 1 or len(rows) == 1) and (plain_name(name) in FIRST or plain_name(name) not in WORDS):
            found.append(name)
    rare = {name: 2 * sum(name in row.cells for row in rows) < len(rows) for name in found}
    return sorted(found, key=lambda name: rare[name])[:most]


def plain_name(metric: str) -> str:
    """The name without the label of one of several rewards: `winrate/PP/chosen` -> `winrate/chosen`."""
    if metric in WORDS:
        return metric
    parts = metric.split("/")
    without = "/".join([parts[0], *parts[2:]])
    return without if len(parts) > 2 and without in WORDS else metric


def words(metric: str) -> str:
    """How a metric is called over its column: `reward accuracy`; its own name where it has no words."""
    name = plain_name(metric)
    told = WORDS.get(name, metric)
    return told if name == metric else f"{told} ({metric.split('/')[1]})"


def of_training(metric: str) -> bool:
    """Whether training itself measures it: it means another thing for another method."""
    return any(metric in each.metrics for each in pipelines().values() if each.gives == "policy")


def greek(parameter: str) -> str:
    """`β` for `beta`, also behind the name of a stage; other names as they are."""
    before, dot, name = parameter.rpartition(".")
    return f"{before}{dot}{GREEK.get(name, name)}"


def shown(value: Any) -> str:
    """A parameter's value in a table: `0.1`, `true`, `{"step": "RM"}` as `step RM`; empty where there is none."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    return ", ".join(map(shown, value)) if isinstance(value, list) else show_value(value)


def direction(metric: str) -> str:
    """Which is better: `lower` or `higher`."""
    return "lower" if lower_is_better(metric) else "higher"


# -- labels ------------------------------------------------------------------------------------------------------------


def short_labels(rows: Sequence[Row]) -> list[str]:
    """A short name for each row, no two the same: its method and the parameters in which it differs from others of that
    method; model and dataset where there are several, the tag or the whole name only where that is not enough."""
    several = [name for name in ("model", "dataset") if len({row.setup.get(name) for row in rows}) > 1]
    varying: dict[str, set[str]] = {}
    for method in {row.setup.get("method", "") for row in rows}:
        varying[method] = set(axes([row for row in rows if row.setup.get("method", "") == method]))
    labels = []
    for row in rows:
        method = row.setup.get("method", "")
        parts = [method, *(row.setup[name] for name in several if name in row.setup)]
        parts += [
            f"{greek(name)} {shown(value)}"
            for name, value in row.params.items()
            if name in varying[method] and value is not None
        ]
        labels.append(" ".join(part for part in parts if part))
    for more in (_with_tag, _with_seed, _whole):
        counts = Counter(labels)
        labels = [more(label, row) if counts[label] > 1 else label for label, row in zip(labels, rows, strict=True)]
    return labels


def _with_tag(label: str, row: Row) -> str:
    return f"{label} ({row.setup['tag']})" if "tag" in row.setup else label


def _with_seed(label: str, row: Row) -> str:
    return f"{label} seed {row.seeds[0]}" if len(row.runs) == 1 and len(row.seeds) == 1 else label


def _whole(label: str, row: Row) -> str:
    return row.label
