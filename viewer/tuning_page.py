"""Parameter tuning of the page Curves: a metric over two parameters, as a heat-map and as lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from cdpo.errors import CdpoError
from cdpo.hub.markdown import plain
from cdpo.plan.names import count
from cdpo.report import tuning
from cdpo.report.overview import SETUP, Row, configuration_rows, direction, greek, metrics_of, of_training, words
from cdpo.report.tuning import AVERAGED
from cdpo.viewer import charts, choices, look, results_data, tuning_chart

NOTHING = "nothing"


def page(root: str) -> None:
    """All swept values are shown, also those that were not chosen."""
    try:
        rows = configuration_rows(results_data.collected(root, choices.tags(), True, ("groups",)))
    except CdpoError as error:
        st.error("The results cannot be read.", icon=":material/error:")
        st.code(str(error), language=None, wrap_lines=True)
        return
    metrics = metrics_of(rows)
    if not metrics:
        look.empty(
            "Nothing is measured yet.", "No step that measures has finished. This says what is missing:", "cdpo status"
        )
        return
    places = st.columns([4, 3, 3])
    with places[0]:
        first = next((at for at, name in enumerate(metrics) if not of_training(name)), 0)
        metric = st.selectbox("Metric", metrics, first, key="metric", bind="query-params", format_func=words)
    having = [row for row in rows if metric in row.cells]
    names = tuning.parameters(having)
    if not names:
        look.empty(
            "No parameter was varied.",
            f"{words(metric)} was measured for one value of each parameter. Lists in configs/tasks.yaml vary them: "
            "beta: [0.05, 0.1, 0.3]",
        )
        return
    with places[1]:
        x = st.selectbox("Across", names, key="across", bind="query-params", format_func=greek)
    with places[2]:
        y = st.selectbox("Down", [*(name for name in names if name != x), NOTHING], key="down", bind="query-params",
                         format_func=greek)  # fmt: skip
    down = None if y == NOTHING else y
    # rows without the parameter have nothing to say of it
    having = [row for row in having if x in row.params and (down is None or down in row.params)]
    if not having:
        look.empty("Nothing was tried with both.", f"No configuration has {greek(x)} and {greek(y)}.")
        return
    chosen, left = _fix(having, x, down)
    _draw(left, metric, x, down, chosen)


def _fix(rows: Sequence[Row], x: str, y: str | None) -> tuple[dict[str, str], list[Row]]:
    """What varies besides: each is fixed, one after the other, or averaged over where that is chosen."""
    chosen: dict[str, str] = {}
    left = list(rows)
    places: list[Any] = []
    # a value that is fixed may settle others
    while open_ones := [name for name in tuning.others(left, x, y) if name not in chosen]:
        name = open_ones[0]
        values = tuning.values_of(left, name)
        if not places:
            st.caption("What else differs between these configurations")
            places = list(st.columns(4))
        sizes = [len(tuning.fixed(left, {name: value})) for value in values]
        most = sizes.index(max(sizes))
        options = [*values, AVERAGED] if tuning.may_be_averaged(name) else values
        with places[len(chosen) % len(places)]:
            value = st.selectbox(plain(greek(name)), options, most, key=f"fix.{name}", bind="query-params")
        chosen[name] = value
        left = tuning.fixed(left, {name: value})
    return chosen, left


def _draw(rows: Sequence[Row], metric: str, x: str, y: str | None, chosen: Mapping[str, str]) -> None:
    places = tuning.grid(rows, metric, x, y)
    several = max(place.configurations for place in places)
    _told(rows, metric, chosen, several)
    measured = [place for place in places if place.mean is not None]
    if y is not None:
        st.subheader(plain(f"{words(metric)} over {greek(x)} and {greek(y)}"), anchor=False)
        charts.show(tuning_chart.heat_map(places, metric, x, y), f"tuning {metric} {x} {y}")
    st.subheader(plain(f"{words(metric)} over {greek(x)}"), anchor=False)
    if len({place.x for place in measured}) > 1:
        charts.show(tuning_chart.lines(places, metric, x, y), f"tuning lines {metric} {x}")
    else:
        look.empty("No line to draw.", f"Only one value of {greek(x)} is measured.")
    held = dict.fromkeys(f"{row.cells[metric].conditional_on} (split {row.cells[metric].split})" for row in rows)
    if several == 1:
        for text in list(held)[:3]:
            st.html(f"<small>95 % intervals: {look.as_text(text)}</small>")


def _told(rows: Sequence[Row], metric: str, chosen: Mapping[str, str], several: int) -> None:
    """What a cell is the mean of: nothing is averaged unsaid."""
    seeds = sorted({row.cells[metric].runs for row in rows})
    of_seeds = count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    what = "One seed in each cell" if seeds == [1] else f"The mean over {of_seeds} in each cell"
    lines = [f"{what}; {direction(metric)} is better."]
    averaged = [greek(name) for name, value in chosen.items() if value == AVERAGED]
    if averaged:
        lines.append(f"Averaged over {', '.join(averaged)}: bars are from the lowest to the highest configuration.")
    elif several > 1:
        lines.append(f"Up to {several} configurations share a cell, alike in all that is named here: it is their mean.")
    same = [f"{name} {rows[0].setup[name]}" for name in SETUP if len({row.setup[name] for row in rows}) == 1]
    st.html(f"<small>{look.as_text(' '.join(lines))} {look.as_text('Of ' + ', '.join(same) + '.')}</small>")
