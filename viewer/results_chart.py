"""One metric of many rows: dots and whiskers, so that differences are seen."""

import textwrap
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from cdpo.report.overview import Row, short_labels, words
from cdpo.viewer import charts

#: rows that are drawn at most, pixels of each, and of the axis below
MOST, ROW_HEIGHT, AXIS = 40, 26, 84
#: characters of one line of a label
LINE = 60


def chart(rows: Sequence[Row], metric: str, spread: bool) -> Any:
    """Of rows that have the metric, in their order; `spread`: the ends are the lowest and the highest run."""
    labels = short_labels(rows)
    table = pd.DataFrame(
        {
            "row": [label_lines(label) for label in labels],
            "method": [row.setup.get("method", "several") for row in rows],
            "mean": [row.cells[metric].mean for row in rows],
            "low": [row.cells[metric].low for row in rows],
            "high": [row.cells[metric].high for row in rows],
            "n": [row.cells[metric].n for row in rows],
        }
    )
    methods = list(dict.fromkeys(table["method"]))
    ends = "lowest to highest run" if spread else "95 % interval"
    y = alt.Y("row:N", sort=None, title=None, axis=label_axis())
    colour = alt.Color("method:N", scale=charts.colours(methods), legend=None if len(methods) == 1 else alt.Legend())
    tooltip = [
        alt.Tooltip("row:N", title="row"),
        alt.Tooltip("mean:Q", title=words(metric), format=".4~g"),
        alt.Tooltip("low:Q", title="from", format=".4~g"),
        alt.Tooltip("high:Q", title="to", format=".4~g"),
        alt.Tooltip("n:Q", title="n"),
    ]
    scale = alt.Scale(zero=False, nice=True)
    base = alt.Chart(table).encode(y=y, color=colour, tooltip=tooltip)
    title = f"{words(metric)}, {ends}"
    whiskers = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", scale=scale, title=title, axis=alt.Axis(tickCount=8)), x2="high:Q"
    )
    ticks = [
        base.mark_tick(thickness=2, size=10).encode(x=alt.X(f"{end}:Q", scale=scale, title=title))
        for end in ("low", "high")
    ]
    dots = base.mark_point(filled=True, size=75, opacity=1).encode(x=alt.X("mean:Q", scale=scale, title=title))
    lines = sum(1 + label.count("\n") for label in table["row"])
    return alt.layer(whiskers, *ticks, dots).properties(height=AXIS + max(ROW_HEIGHT * len(rows), 15 * lines))


def label_lines(label: str) -> str:
    """A long label on several lines: nothing of it is cut."""
    return "\n".join(textwrap.wrap(label, LINE, break_on_hyphens=False))


def label_axis() -> Any:
    return alt.Axis(
        labelExpr="split(datum.label, '\\n')",
        labelLimit=0,
        labelOverlap=False,
        ticks=False,
        domain=False,
        labelPadding=8,
    )
