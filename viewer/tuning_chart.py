"""A metric over two parameters as pictures: a heat-map with its numbers, and lines with their intervals."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import altair as alt
import pandas as pd

from cdpo.plan.names import count
from cdpo.report.overview import greek, words
from cdpo.report.tables import number
from cdpo.report.tuning import Place
from cdpo.viewer import charts

#: pixels of a row of cells, and of what is around them
CELL, AROUND = 62, 70
#: of the scale of colours, where its text turns from white to black: viridis is lighter from there on
LIGHT = 0.55
GREY = "#7f8790"


def heat_map(places: Sequence[Place], metric: str, x: str, y: str) -> Any:
    """Every pair of values is a cell, with its number and how many seeds; what was not measured is an empty frame."""
    table = pd.DataFrame([{**asdict(place), **_written(place)} for place in places])
    measured, missing = table[table["mean"].notna()], table[table["mean"].isna()]
    low, high = measured["mean"].min(), measured["mean"].max()
    across, down = list(dict.fromkeys(table["x"])), list(dict.fromkeys(table["y"]))
    at_x = alt.X("x:N", sort=across, title=greek(x), axis=alt.Axis(labelAngle=0, labelLimit=0, ticks=False))
    # the largest value stands on top, as on an axis
    at_y = alt.Y("y:N", sort=down[::-1], title=greek(y), axis=alt.Axis(labelLimit=0, ticks=False))
    scale = alt.Scale(scheme=charts.SEQUENTIAL, domain=[low, high] if high > low else [low - 0.5, low + 0.5])
    tooltip = [
        alt.Tooltip("x:N", title=greek(x)),
        alt.Tooltip("y:N", title=greek(y)),
        alt.Tooltip("mean:Q", title=words(metric), format=".5~g"),
        alt.Tooltip("low:Q", title="from", format=".4~g"),
        alt.Tooltip("high:Q", title="to", format=".4~g"),
        alt.Tooltip("sizes:N", title="mean of"),
    ]
    legend = alt.Legend(format=".3~g", tickCount=4)
    colour = alt.Color("mean:Q", scale=scale, title=None, legend=legend)
    cells = alt.Chart(measured).mark_rect(cornerRadius=3).encode(x=at_x, y=at_y, tooltip=tooltip, color=colour)
    # of few cells with one value a scale has nothing to say
    bright = measured["mean"] >= low + LIGHT * (high - low) if high > low else measured["mean"] > low
    layers = [cells]
    for part, colour in ((measured[bright], "#111111"), (measured[~bright], "#ffffff")):
        text = alt.Chart(part).encode(x=at_x, y=at_y, tooltip=tooltip)
        layers.append(text.mark_text(fontSize=14, dy=-7, color=colour).encode(text="number:N"))
        layers.append(text.mark_text(fontSize=11, dy=10, color=colour).encode(text="sizes:N"))
    if len(missing):
        empty = alt.Chart(missing).encode(x=at_x, y=at_y)
        frame = {"filled": False, "stroke": GREY, "strokeDash": [4, 4], "strokeOpacity": 0.7, "cornerRadius": 3}
        layers.append(empty.mark_rect(**frame))
        layers.append(empty.mark_text(fontSize=11, color=GREY).encode(text=alt.value("not measured")))
    return alt.layer(*layers).properties(height=CELL * len(down) + AROUND)


def _written(place: Place) -> dict[str, str]:
    if place.mean is None:
        return {"number": "", "sizes": ""}
    sizes = count(place.seeds, "seed")
    if place.configurations > 1:
        sizes = f"{count(place.configurations, 'configuration')}, {sizes} each"
    return {"number": number(place.mean), "sizes": sizes}


def lines(places: Sequence[Place], metric: str, x: str, y: str | None) -> Any:
    """One line for each value of `y` over the values of `x`, evenly spaced; whiskers are the intervals."""
    table = pd.DataFrame([asdict(place) for place in places if place.mean is not None])
    across = list(dict.fromkeys(place.x for place in places))
    names = list(dict.fromkeys(table["y"]))
    # beside each other, so that no whisker hides another
    step = min(0.12, 0.6 / max(1, len(names)))
    table["at"] = [
        across.index(row.x) + step * (names.index(row.y) - (len(names) - 1) / 2) for row in table.itertuples()
    ]
    ticks = ", ".join(f"'{_quoted(value)}'" for value in across)
    axis = alt.Axis(values=list(range(len(across))), labelExpr=f"[{ticks}][datum.value]", grid=False, labelLimit=0)
    at = alt.X("at:Q", title=greek(x), axis=axis, scale=alt.Scale(domain=[-0.5, len(across) - 0.5], nice=False))
    legend = alt.Legend(title=greek(y) if y else None, labelLimit=0) if y else None
    colour = alt.Color("y:N", scale=charts.colours(names), sort=names, legend=legend)
    tooltip = [
        alt.Tooltip("x:N", title=greek(x)),
        *([alt.Tooltip("y:N", title=greek(y))] if y else []),
        alt.Tooltip("mean:Q", title=words(metric), format=".5~g"),
        alt.Tooltip("low:Q", title="from", format=".4~g"),
        alt.Tooltip("high:Q", title="to", format=".4~g"),
        alt.Tooltip("seeds:Q", title="seeds"),
    ]
    base = alt.Chart(table).encode(x=at, color=colour)
    scale = alt.Scale(zero=False)
    value = alt.Y("mean:Q", title=words(metric), scale=scale)
    whiskers = base.mark_rule(strokeWidth=1.6, opacity=0.7).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")
    return alt.layer(
        whiskers,
        base.mark_line(strokeWidth=1.6).encode(y=value),
        base.mark_point(filled=True, size=70, opacity=1).encode(y=value, tooltip=tooltip),
    ).properties(height=340)


def _quoted(text: str) -> str:
    """For a string in an expression of Vega's."""
    return text.replace("\\", "\\\\").replace("'", "\\'")
