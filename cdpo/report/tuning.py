"""A metric over two parameters: cells of a heat-map, points of lines. What varies besides is never averaged unsaid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdpo.config.canonical import canonical_json
from cdpo.report.overview import SETUP, Row, of_training, shown

#: the choice to average over what a parameter varies in
AVERAGED = "averaged"


@dataclass(frozen=True)
class Place:
    """One pair of values; `mean` is None where nothing was measured there."""

    x: str
    y: str
    mean: float | None
    #: the 95 % interval of the one configuration here, or the lowest and highest of several
    low: float | None
    high: float | None
    #: how many seeds were averaged, at least, and how many configurations
    seeds: int
    configurations: int


def values_of(rows: Sequence[Row], name: str) -> list[str]:
    """The values of a parameter (or of SETUP) as they are shown, numbers by size and before everything else."""
    found = {canonical_json(_value(row, name)): _value(row, name) for row in rows}
    return [_shown(value) for value in sorted(found.values(), key=_size)]


def _value(row: Row, name: str) -> Any:
    return row.setup.get(name) if name in SETUP else row.params.get(name)


def _shown(value: Any) -> str:
    return "not set" if value is None else shown(value)


def _size(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return 1 + (value is None), 0.0, shown(value)


def parameters(rows: Sequence[Row]) -> list[str]:
    """The parameters that have several values among `rows`, those first of which one method tried most."""
    names = dict.fromkeys(name for row in rows for name in row.params)
    methods = {row.setup.get("method") for row in rows}

    def tried(name: str, method: str | None) -> int:
        return len(values_of([row for row in rows if name in row.params and row.setup.get("method") == method], name))

    most = {name: max(tried(name, method) for method in methods) for name in names}
    several = (name for name in names if len(values_of([row for row in rows if name in row.params], name)) > 1)
    return sorted(several, key=lambda name: -most[name])


def others(rows: Sequence[Row], x: str, y: str | None) -> list[str]:
    """What varies besides: of SETUP, and of the parameters. Each must be fixed, or averaged by choice."""
    names = [*SETUP, *dict.fromkeys(name for row in rows for name in row.params)]
    return [name for name in names if name not in (x, y) and len(values_of(rows, name)) > 1]


def may_be_averaged(name: str) -> bool:
    """Only over parameters: methods, models, datasets and tags are different questions."""
    return name not in SETUP


def fixed(rows: Sequence[Row], chosen: Mapping[str, str]) -> list[Row]:
    """The rows that have the chosen values; AVERAGED keeps all."""
    return [
        row
        for row in rows
        if all(value == AVERAGED or _shown(_value(row, name)) == value for name, value in chosen.items())
    ]


def grid(rows: Sequence[Row], metric: str, x: str, y: str | None) -> list[Place]:
    """A place for every pair of values that `rows` (configurations) have, also where none was measured.

    The mean of a place is over configurations that share it, each the mean over its seeds. Raises ValueError for what
    training measures where rows are of several methods: it means different things.
    """
    if of_training(metric) and len({row.setup["method"] for row in rows}) > 1:
        raise ValueError(f"{metric} of several methods cannot be shown as one")
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((_shown(_value(row, x)), _shown(_value(row, y)) if y else ""), []).append(row)
    ys = values_of(rows, y) if y else [""]
    return [_place(at, down, found.get((at, down), []), metric) for down in ys for at in values_of(rows, x)]


def _place(x: str, y: str, rows: Sequence[Row], metric: str) -> Place:
    having = [row for row in rows if metric in row.cells]
    if not having:
        return Place(x, y, None, None, None, 0, 0)
    cells = [row.cells[metric] for row in having]
    seeds = min(cell.runs for cell in cells)
    if len(cells) == 1:
        return Place(x, y, cells[0].mean, cells[0].low, cells[0].high, seeds, 1)
    means = [cell.mean for cell in cells]
    return Place(x, y, math.fsum(means) / len(means), min(means), max(means), seeds, len(means))
