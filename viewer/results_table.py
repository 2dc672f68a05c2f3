"""The table of results: a column for each metric, and beside it the interval as a drawing on one scale."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pandas as pd
import streamlit as st

from cdpo.report.overview import Cell, Row, direction, greek, shown, words
from cdpo.viewer.charts import COLOURS

#: what may stand beside each value
BAR, HALF, SIZE = "interval", "±", "n"
#: pixels of a drawing, which is as high as a row, and the width of its column
WIDE, HIGH, COLUMN = 104, 36, 118
#: seconds in the units of durations
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
LINKS = (("model", "model"), ("dataset", "responses"))


def frame(
    rows: Sequence[Row],
    setup: Sequence[str],
    params: Sequence[str],
    rest: Sequence[str],
    metrics: Sequence[str],
    beside: Sequence[str],
    links: Mapping[str, Mapping[str, str]],
    spread: bool = False,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and how its columns are shown. `setup` are columns of the rows themselves (method, seeds, state, ...);
    `rest` are parameters that share one; `spread`: the drawings are of lowest and highest runs, and no intervals."""
    table: dict[str, list[Any]] = {}
    shown_as: dict[str, Any] = {}
    marks = marks_of(rows)
    for name in setup:
        table[name] = [_about(row, name, marks) for row in rows]
        shown_as[name] = st.column_config.TextColumn(name, pinned=name == "method", help=_HELP.get(name))
    for name in params:
        values = [row.params.get(name) for row in rows]
        table[f"param {name}"], shown_as[f"param {name}"] = _parameter(name, values)
    together = [
        ", ".join(f"{greek(name)} {shown(row.params[name])}" for name in rest if row.params.get(name) is not None)
        for row in rows
    ]
    if rest and not params:
        table["parameters"] = together
    for name in metrics:
        cells = [row.cells.get(name) for row in rows]
        # on one scale a drawing would say that they can be compared, and on several that they are alike
        told = beside if one_scale(name, rows) else [HALF, *(each for each in beside if each == SIZE)]
        _add_metric(table, shown_as, name, cells, told, spread)
    _add_duration(table, shown_as, [row.seconds for row in rows])
    for kind, label in LINKS:
        urls = [next((links[run][kind] for run in row.runs if kind in links.get(run, ())), None) for row in rows]
        if any(urls):
            table[f"link {kind}"] = urls
            shown_as[f"link {kind}"] = st.column_config.LinkColumn(label, display_text="open", width="small")
    if rest and params:
        table["parameters"] = together
    return pd.DataFrame(table), shown_as


def marks_of(rows: Sequence[Row]) -> list[str]:
    """What is remarked of rows, in the order of the numbers that stand in the table."""
    return list(dict.fromkeys(mark for row in rows for mark in row.marks))


_HELP = {
    "seeds": "seeds that were run; a value is the mean over them",
    "runs": "how many runs the row is the mean of",
    "state": "done: all steps are there",
    "remarks": "what is to be known before the numbers are believed; see below the table",
}


def _about(row: Row, name: str, marks: Sequence[str]) -> str | None:
    if name == "seeds":
        return ", ".join(map(str, row.seeds))
    if name == "runs":
        return str(max((cell.runs for cell in row.cells.values()), default=len(row.runs)))
    if name == "state":
        return row.state
    if name == "remarks":
        return " ".join(f"⚠ {marks.index(mark) + 1}" for mark in row.marks) or None
    return row.label.partition("/")[2] if name == "name" else row.setup.get(name, "several")


def _parameter(name: str, values: list[Any]) -> tuple[list[Any], Any]:
    """Numbers stay numbers, so that they are sorted by size."""
    numbers = all(value is None or _is_number(value) for value in values)
    if numbers:
        return [None if value is None else float(value) for value in values], st.column_config.NumberColumn(
            greek(name), format="%.6g", help=name
        )
    return [shown(value) or None for value in values], st.column_config.TextColumn(greek(name), help=name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _add_metric(
    table: dict[str, list[Any]],
    shown_as: dict[str, Any],
    name: str,
    cells: Sequence[Cell | None],
    beside: Sequence[str],
    spread: bool,
) -> None:
    means = [None if cell is None else cell.mean for cell in cells]
    form = number_format([value for value in means if value is not None])
    splits = " and ".join(dict.fromkeys(cell.split for cell in cells if cell))
    what = f"`{name}` on the split {splits}; {direction(name)} is better"
    table[name] = means
    shown_as[name] = st.column_config.NumberColumn(words(name), format=form, help=what)
    if HALF in beside and not spread:
        halves = [_half(cell) for cell in cells]
        table[f"half {name}"] = halves
        shown_as[f"half {name}"] = st.column_config.NumberColumn(
            "±", format=form, help=f"half the interval of `{name}`"
        )
    if SIZE in beside:
        table[f"n {name}"] = [None if cell is None else cell.n for cell in cells]
        shown_as[f"n {name}"] = st.column_config.NumberColumn("n", format="%d", help=f"averaged for `{name}`")
    if BAR in beside and any(cell is not None and cell.low is not None for cell in cells):
        _add_drawings(table, shown_as, name, cells, spread)


def one_scale(metric: str, rows: Sequence[Row]) -> bool:
    """Whether the values of all rows are of one kind: the loss of another method is another thing."""
    return metric != "loss" or len({row.setup.get("method") for row in rows if metric in row.cells}) < 2


def _add_drawings(
    table: dict[str, list[Any]], shown_as: dict[str, Any], name: str, cells: Sequence[Cell | None], spread: bool
) -> None:
    told = "low to high" if spread else "95 % interval"
    table[f"bar {name}"] = drawings(cells, spread)
    shown_as[f"bar {name}"] = st.column_config.ImageColumn(
        told, width=COLUMN, help=f"`{name}`: {told}; drawn {scale_told(cells)}"
    )


def _half(cell: Cell | None) -> float | None:
    return None if cell is None or cell.low is None or cell.high is None else (cell.high - cell.low) / 2


def number_format(values: Sequence[float]) -> str:
    """Of a column: three places after the point; four significant digits where that would show too much or nothing."""
    largest = max(map(abs, values), default=0.0)
    return "%.3f" if largest == 0 or 0.02 <= largest < 1000 else "%.4g"


def _add_duration(table: dict[str, list[Any]], shown_as: dict[str, Any], seconds: Sequence[Sequence[float]]) -> None:
    """The mean over a row's runs, in the largest unit that leaves most above 1."""
    means = [sum(each) / len(each) if each else None for each in seconds]
    known = sorted(mean for mean in means if mean is not None)
    if not known:
        return
    unit, size = next(((unit, size) for unit, size in UNITS if known[len(known) // 2] >= size), UNITS[-1])
    table["duration"] = [None if mean is None else mean / size for mean in means]
    shown_as["duration"] = st.column_config.NumberColumn(
        f"training ({unit})", format="%.1f", help="how long the training of the method itself took; the mean over runs"
    )


# -- drawings ----------------------------------------------------------------------------------------------------------


def limits(cells: Sequence[Cell | None]) -> tuple[float, float]:
    """The scale of a column: from the lowest end to the highest."""
    ends = [end for cell in cells if cell for end in (cell.mean, cell.low, cell.high) if end is not None]
    return min(ends), max(ends)


def scale_told(cells: Sequence[Cell | None]) -> str:
    low, high = limits(cells)
    return f"from {low:.3g} to {high:.3g}"


def drawings(cells: Sequence[Cell | None], spread: bool) -> list[str | None]:
    """Each cell's mean as a dot and its ends as whiskers (or, for a spread, as a bar), on the column's scale."""
    low, high = limits(cells)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(8 + (WIDE - 16) * (value - low) / span, 1)

    return [None if cell is None else _drawing(cell, place, spread) for cell in cells]


def _drawing(cell: Cell, place: Any, spread: bool) -> str:
    ends = ""
    if cell.low is not None and cell.high is not None:
        left, right = place(cell.low), place(cell.high)
        ends = (_BAR if spread else _WHISKERS).format(left=left, right=right)
    return _BEFORE + ends + _DOT.format(middle=place(cell.mean)) + _AFTER


def _address(svg: str) -> str:
    """Markup as a part of a `data:` address; what is filled in later, digits and points, needs no such care."""
    return quote(svg, safe=" =':/,.{}")


_MIDDLE = HIGH // 2
_BEFORE = "data:image/svg+xml," + _address(
    f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDE}' height='{HIGH}' viewBox='0 0 {WIDE} {HIGH}'>"
    f"<path d='M0 {_MIDDLE}H{WIDE}' stroke='#7f8790' stroke-opacity='.3'/>"
)
_BAR = _address(
    f"<path d='M{{left}} {_MIDDLE}H{{right}}' stroke='{COLOURS[0]}' stroke-opacity='.45' stroke-width='8'/>"
)
_WHISKERS = _address(
    f"<path d='M{{left}} {_MIDDLE}H{{right}}M{{left}} {_MIDDLE - 5}v10M{{right}} {_MIDDLE - 5}v10' "
    f"stroke='{COLOURS[0]}' stroke-width='2' fill='none'/>"
)
_DOT = _address(f"<circle cx='{{middle}}' cy='{_MIDDLE}' r='4.2' fill='{COLOURS[0]}'/>")
_AFTER = _address("</svg>")


def reward_models(models: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table of reward models, by their own metrics."""
    table: dict[str, list[Any]] = {
        "name": [model["name"] for model in models],
        "seed": [str(model["seed"]) for model in models],
    }
    shown_as: dict[str, Any] = {}
    for name in metrics:
        values = [model["metrics"].get(name) for model in models]
        cells = [
            value
            and Cell(value["mean"], value["low"], value["high"], value["n"], 1, value["split"], value["conditional_on"])
            for value in values
        ]
        _add_metric(table, shown_as, name, cells, [BAR, SIZE], False)
    return pd.DataFrame(table), shown_as
