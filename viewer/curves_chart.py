"""Curves of training as a chart: one line for each configuration, a band over its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import pandas as pd

from cdpo.report.curves import Band, Points, band, thin
from cdpo.viewer import charts, look

#: points of one line, and of all lines of a chart
MOST_POINTS, ALL_POINTS = 1000, 30_000
#: lines of fewer points have dots, which a line alone would hide
FEW = 40
STEP, EPOCH = "step", "epoch"
TITLES = {STEP: "optimiser step", EPOCH: "epoch"}
EACH = "each seed"


@dataclass(frozen=True)
class Drawn:
    """A line of the chart: what its legend says, and its curve."""

    name: str
    curve: Band


def joined(name: str, seeds: Mapping[int, Points], spread: str, weight: float) -> list[Drawn]:
    """One line with its band; with EACH a line for each seed."""
    if spread != EACH:
        return [Drawn(name, band(list(seeds.values()), spread, weight))]
    return [
        Drawn(name if len(seeds) == 1 else f"{name}, seed {seed}", band([points], weight=weight))
        for seed, points in sorted(seeds.items())
    ]


def frame(drawn: Sequence[Drawn], x: str) -> pd.DataFrame:
    """The points that are sent: x, mean, low, high, seeds of every line, thinned; those without an epoch left out."""
    most = min(MOST_POINTS, max(50, ALL_POINTS // max(1, len(drawn))))
    tables = []
    for each in drawn:
        curve = thin(each.curve, most)
        at = curve.steps if x == STEP else curve.epochs
        columns = {"x": at, "mean": curve.mean, "low": curve.low, "high": curve.high, "seeds": curve.seeds}
        tables.append(pd.DataFrame(columns).assign(line=each.name))
    every = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["x", "mean", "line"])
    return every[every["x"].notna()]


def chart(drawn: Sequence[Drawn], names: Sequence[str], metric: str, x: str, legend: bool) -> Any:
    """`names`: all lines of the page in the order of their colours; `legend`: for a picture that stands alone."""
    table = frame(drawn, x)
    few = table.groupby("line")["x"].transform("size") <= FEW
    here = [name for name in names if name in set(table["line"])]
    kept = (
        alt.Legend(
            title=None,
            orient="bottom",
            columns=2,
            labelLimit=0,
            symbolType="stroke",
            symbolOpacity=1,
            symbolStrokeWidth=3,
        )
        if legend
        else None
    )
    nearest = alt.selection_point(on="pointermove", nearest=True, fields=["line"], empty=True, clear="pointerout")
    scale = alt.Scale(zero=False, nice=False)
    base = alt.Chart(table).encode(
        x=alt.X("x:Q", title=TITLES[x], scale=scale),
        color=alt.Color("line:N", scale=_only(charts.colours(names), here), legend=kept),
    )
    # on the page the metric stands above
    title = metric if legend else None
    value = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=".4~g"))
    strong = alt.condition(nearest, alt.value(1.0), alt.value(0.25))
    layers = []
    if (table["high"] > table["low"]).any():
        faint = alt.condition(nearest, alt.value(0.18), alt.value(0.05))
        layers.append(base.mark_area(line=False).encode(y=alt.Y("low:Q", title=title), y2="high:Q", opacity=faint))
    dash = alt.StrokeDash("line:N", scale=_only(charts.dashes(names), here), legend=None)
    layers.append(base.mark_line(strokeWidth=1.8).encode(y=value, opacity=strong, strokeDash=dash))
    tooltip = [
        alt.Tooltip("line:N", title="line"),
        alt.Tooltip("x:Q", title=TITLES[x], format=",.4~g" if x == EPOCH else ",d"),
        alt.Tooltip("mean:Q", title=metric, format=".4~g"),
        alt.Tooltip("low:Q", title="from", format=".4~g"),
        alt.Tooltip("high:Q", title="to", format=".4~g"),
        alt.Tooltip("seeds:Q", title="seeds"),
    ]
    # what is pointed at: invisible, but where there are so few points that a line hides them
    points = base.mark_point(filled=True, size=45).encode(y=value, opacity=alt.value(0), tooltip=tooltip)
    layers.append(points.add_params(nearest))
    if few.any():
        dots = alt.Chart(table[few]).encode(x=alt.X("x:Q", scale=scale), color=alt.Color("line:N", legend=None))
        layers.append(dots.mark_point(filled=True, size=35).encode(y=value, opacity=strong))
    return alt.layer(*layers).properties(height=340)


def _only(scale: Any, names: Sequence[str]) -> Any:
    """A scale of all lines for those that are there: a legend names no others."""
    found = dict(zip(scale.domain, scale.range, strict=True))
    return alt.Scale(domain=list(names), range=[found[name] for name in names])


def legend(names: Sequence[str]) -> str:
    """HTML: each line's stroke and its name, wrapped, nothing cut."""
    dashes = charts.dashes(names).range
    items = []
    for name, colour, dash in zip(names, charts.colours(names).range, dashes, strict=True):
        stroke = "solid" if dash == [1, 0] else "dashed" if dash == [6, 3] else "dotted"
        items.append(
            "<span style='display:inline-flex;align-items:center;gap:.45em;margin:0 1.4em .2em 0'>"
            f"<span style='flex:none;width:1.5em;border-top:3px {stroke} {colour}'></span>"
            f"<span style='overflow-wrap:anywhere'>{look.as_text(name)}</span></span>"
        )
    return f"<div style='font-size:.88rem;display:flex;flex-wrap:wrap'>{''.join(items)}</div>"
