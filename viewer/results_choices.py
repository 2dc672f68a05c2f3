"""What the page Results lets one choose: rows, columns, intervals. Every choice is in the URL."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from cdpo.report.overview import SETUP, Row, axes, greek, metrics_of, shown, shown_unasked, words
from cdpo.viewer import results_table

CONFIGURATIONS, RUNS = "configurations", "runs"
PROMPTS, SEEDS = "prompts", "seeds"
#: parameters that are columns of their own unasked; the others share one
MOST_PARAMETERS = 4


@dataclass(frozen=True)
class Chosen:
    """Which rows: configurations or runs, or with `by` groups of runs; with all the words of `find`."""

    view: str
    by: list[str]
    find: str
    #: what intervals are over
    over: str
    beside: list[str]
    #: where the choice of columns goes, when it is known what there is
    room: Any

    @property
    def unit(self) -> str:
        return "groups" if self.by else self.view


@dataclass(frozen=True)
class Columns:
    setup: list[str]
    #: each a column of its own
    params: list[str]
    #: in one column together
    rest: list[str]
    metrics: list[str]


def choose(configurations: Sequence[Row], sweeps: bool) -> Chosen:
    """The row of controls; `configurations` say what can be grouped by, `sweeps` whether there are swept values."""
    by_seed = ["seed"] if any(len(row.seeds) > 1 for row in configurations) else []
    places = st.columns([3, 4, 3, 3], vertical_alignment="bottom")
    with places[0]:
        view = st.segmented_control(
            "Rows",
            [CONFIGURATIONS, RUNS],
            default=CONFIGURATIONS,
            required=True,
            key="view",
            bind="query-params",
            help="A configuration is the mean over its seeds: over runs that differ in nothing else.",
        )
    with places[1]:
        by = st.multiselect(
            "Group by",
            list(dict.fromkeys([*axes(configurations), *by_seed])),
            key="by",
            bind="query-params",
            placeholder="nothing",
            help="The mean over all runs that agree in these, and the lowest and the highest of them.",
        )
    with places[2]:
        find = st.text_input("Search", key="find", bind="query-params", placeholder="method, value, tag ...")
    with places[3]:
        room = st.popover("Columns and intervals", icon=":material/tune:", width="stretch")
    with room:
        over = st.segmented_control(
            "95 % intervals over",
            [PROMPTS, SEEDS],
            default=PROMPTS,
            required=True,
            key="over",
            bind="query-params",
            disabled=view == RUNS or bool(by),
            help="Prompts: had others been asked. Seeds: had the training been repeated; needs two seeds or more.",
        )
        beside = st.pills(
            "Beside each value",
            [results_table.BAR, results_table.HALF, results_table.SIZE],
            default=[results_table.BAR],
            selection_mode="multi",
            key="beside",
            bind="query-params",
        )
        if sweeps:
            st.toggle("All swept values, not only the chosen", key="all", bind="query-params")
    return Chosen(view or CONFIGURATIONS, by, find or "", over if view != RUNS else PROMPTS, beside, room)


def every_swept() -> bool:
    """Whether all swept values are asked for: known before the toggle is drawn, which needs the results."""
    value = st.session_state.get("all", st.query_params.get("all", ""))
    return value is True or str(value).lower() == "true"


def columns(rows: Sequence[Row], chosen: Chosen) -> Columns:
    """What differs between rows, without what is hidden and with what is added."""
    setup, params, rest, metrics = _unasked(rows, chosen)
    every_setup = ["name", "method", "model", "dataset", "tag", "seeds", "state"]
    every = {
        **dict.fromkeys(every_setup, "setup"),
        **dict.fromkeys((name for row in rows for name in row.params), "params"),
        **dict.fromkeys(metrics_of(rows), "metrics"),
    }
    shown_now = {*setup, *params, *metrics}
    with chosen.room:
        added = st.multiselect(
            "Add columns", [name for name in every if name not in shown_now], key="add", bind="query-params",
            format_func=heading, placeholder="none",
        )  # fmt: skip
        hidden = st.multiselect(
            "Hide columns", [name for name in every if name in shown_now and name != "method"], key="hide",
            bind="query-params", format_func=heading, placeholder="none",
        )  # fmt: skip

    def of(kind: str, names: Sequence[str]) -> list[str]:
        return [
            each for each in every if every[each] == kind and (each in added or (each in names and each not in hidden))
        ]

    last = [name for name in ("runs", "remarks") if name in setup]
    own = of("params", params)
    together = [name for name in rest if name not in own]
    return Columns([*of("setup", setup), *last], own, together, of("metrics", metrics))


def _unasked(rows: Sequence[Row], chosen: Chosen) -> tuple[list[str], list[str], list[str], list[str]]:
    differing = axes(rows)
    setup = [name for name in SETUP if name in differing or name == "method"]
    rest = [name for name in differing if name not in SETUP and name != "seed"]
    # what was tried is what differs between rows of one method; the others tell methods apart
    methods = {row.setup.get("method") for row in rows}
    tried = {name for method in methods for name in axes([row for row in rows if row.setup.get("method") == method])}
    params = [name for name in rest if name in tried][:MOST_PARAMETERS]
    if chosen.by:
        # what a group averages over is not passed over in silence
        setup = [name for name in SETUP if name in chosen.by or any(name not in row.setup for row in rows)]
        params = [name for name in chosen.by if name not in (*SETUP, "seed")]
        setup += ["runs"]
        rest = []
    if "seed" in differing or (not chosen.by and chosen.view == RUNS) or "seed" in chosen.by:
        setup.append("seeds")
    if len({row.state for row in rows}) > 1 or any(row.state != "done" for row in rows):
        setup.append("state")
    if any(row.marks for row in rows):
        setup.append("remarks")
    return setup, params, [name for name in rest if name not in params], shown_unasked(rows, metrics_of(rows))


def heading(name: str) -> str:
    """Of a column: a metric in words, a parameter as it is."""
    told = words(name)
    return told if told != name else greek(name)


def fits(row: Row, find: str) -> bool:
    """Whether every word of the search stands somewhere in the row's names and values."""
    about = [row.label, row.state, *row.setup.values(), *row.marks]
    about += [f"{name} {greek(name)} {shown(value)}" for name, value in row.params.items()]
    text = " ".join(about).lower()
    return all(word in text for word in find.lower().split())
