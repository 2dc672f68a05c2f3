"""Results: one row per configuration, run, or group of runs, with intervals as drawings; what was chosen; downloads."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from cdpo.errors import CdpoError
from cdpo.plan.names import count
from cdpo.report.overview import Row, configuration_rows, group_rows, metrics_of, of_training, run_rows, words
from cdpo.report.tables import SELECTION_HEAD, selection_tables
from cdpo.viewer import (
    charts,
    choices,
    look,
    results_chart,
    results_choices,
    results_data,
    results_downloads,
    results_table,
    source,
)
from cdpo.viewer.results_choices import RUNS, SEEDS, Chosen

#: parts of what `collect` gives that are always shown
SHOWN = ("groups", "reward_models", "selections")
#: rows that the table shows without scrolling, and their height in pixels
VISIBLE, ROW_HEIGHT = 16, 36
#: which rows are ticked, in the address
TICKED = "ticked"
#: what is to be made of a remark, by how it ends
MEANINGS = {
    "also trained it": "It was trained for the very reward that scores it; gold, a judge or another reward model say "
    "more of it.",
    "removes a tag's runs": "The numbers are of what the tasks file asked for before it was changed.",
}


def page() -> None:
    store = source.shown()
    assert store is not None  # the frame shows another page where there is none
    root = str(store.root)
    look.head("Results", "What was measured of every configuration. Tick rows to see their curves or to compare them.")
    every = results_choices.every_swept()
    try:
        collected = results_data.collected(root, choices.tags(), every, SHOWN)
    except CdpoError as error:
        st.error("The results cannot be read.", icon=":material/error:")
        st.code(str(error), language=None, wrap_lines=True)
        return
    if not collected["groups"]:
        look.empty("No runs yet.", "This executes the experiments of configs/tasks.yaml:", "cdpo execute")
        return
    configurations = configuration_rows(collected)
    chosen = results_choices.choose(configurations, bool(collected["selections"]) or every)
    rows = rows_of(root, collected, configurations, chosen, every)
    selections(collected["selections"])
    if not rows:
        look.empty("No row fits.", "Nothing here has every word of the search.")
        return
    picked = table(root, rows, chosen)
    actions(root, picked, chosen, every)
    told(rows, chosen)
    if metrics_of(rows):
        figure(picked if len(picked) > 1 else rows, chosen)
    else:
        look.empty(
            "Nothing is measured yet.", "No step that measures has finished. This says what is missing:", "cdpo status"
        )
    reward_models(collected["reward_models"])


def rows_of(
    root: str, collected: Mapping[str, Any], configurations: list[Row], chosen: Chosen, every: bool
) -> list[Row]:
    """The rows that are asked for; a search is among runs, before they are grouped."""
    if chosen.by or chosen.view == RUNS:
        rows = run_rows(results_data.collected(root, choices.tags(), every, ("runs",)))
    else:
        rows = configuration_rows(collected, SEEDS) if chosen.over == SEEDS else configurations
    rows = [row for row in rows if results_choices.fits(row, chosen.find)]
    return group_rows(rows, chosen.by) if chosen.by else rows


# -- the table ---------------------------------------------------------------------------------------------------------


def table(root: str, rows: Sequence[Row], chosen: Chosen) -> list[Row]:
    """Draws it; the rows that are ticked."""
    columns = results_choices.columns(rows, chosen)
    frame, shown_as = results_table.frame(
        rows,
        columns.setup,
        columns.params,
        columns.rest,
        columns.metrics,
        chosen.beside,
        results_data.published(root),
        spread=bool(chosen.by),
    )
    # ticks are places: where the rows are others, they would be of others
    these = hashlib.sha256("\n".join(row.label for row in rows).encode()).hexdigest()[:12]
    asked = st.query_params.get_all(TICKED)
    # who comes back to the page finds what was ticked, also where the browser's Back has lost the address
    if f"table {these}" not in st.session_state and (asked or f"first {these}" not in st.session_state):
        st.session_state[f"first {these}"] = [at for at, row in enumerate(rows) if row.label in asked]
    first = st.session_state[f"first {these}"]
    event = st.dataframe(
        frame,
        column_config=shown_as,
        hide_index=True,
        placeholder="",
        row_height=ROW_HEIGHT,
        height=ROW_HEIGHT * min(len(rows), VISIBLE) + ROW_HEIGHT + 4,
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": first, "columns": [], "cells": []}},
        key=f"table {these}",
        alt=f"Results of {len(rows)} {chosen.unit}",
    )
    picked = [rows[at] for at in event["selection"]["rows"] if at < len(rows)]
    if [row.label for row in picked] != asked:
        st.query_params[TICKED] = [row.label for row in picked]
    return picked


def actions(root: str, picked: Sequence[Row], chosen: Chosen, every: bool) -> None:
    """What can be done with the rows that are ticked, and the downloads."""
    with st.container(horizontal=True, vertical_alignment="center"):
        curves = st.button(
            "Curves of these", icon=":material/show_chart:", disabled=not picked, help="Tick one row or more."
        )
        two = len(picked) == 2 and not chosen.by
        compare = st.button(
            "Compare these two",
            icon=":material/compare_arrows:",
            disabled=not two,
            help="Tick two configurations or runs.",
        )
        steps = st.button(
            "Steps of these", icon=":material/account_tree:", disabled=not picked, help="What made the numbers."
        )
        st.space("stretch")
        with st.popover("Download", icon=":material/download:"):
            results_downloads.buttons(root, choices.tags(), every)
    labels = [label for row in picked for label in (row.runs if chosen.by else [row.label])]
    if curves:
        st.switch_page("screens/curves.py", query_params={"runs": labels})
    if steps:
        st.switch_page("screens/provenance.py", query_params={"runs": labels})
    if compare:
        st.switch_page("screens/compare.py", query_params={"a": labels[0], "b": labels[1]})


def told(rows: Sequence[Row], chosen: Chosen) -> None:
    """What the numbers are: splits, intervals, remarks. None of it is left to be guessed."""
    cells = [(name, cell) for row in rows for name, cell in row.cells.items()]
    splits = " and ".join(f"`{split}`" for split in dict.fromkeys(cell.split for _, cell in cells))
    if chosen.by:
        lines = [f"Means over runs, on the split {splits}; bars from the lowest to the highest run, no intervals."]
    elif chosen.over == SEEDS:
        lines = [f"Means on the split {splits}; 95 % intervals over seeds, conditional on these prompts."]
    else:
        lines = [
            f"Means on the split {splits}; 95 % intervals over prompts, conditional on the seeds, the trained models, "
            "their responses and who scored them."
        ]
    methods = {row.setup.get("method", "several") for row in rows}
    training = [words(name) for name in metrics_of(rows) if of_training(name)]
    if cells and len(methods) > 1 and training:
        what = ", ".join(training[:3])
        lines.append(f"Training itself measured {what}: for different methods these are different things.")
    if cells:
        st.caption(" ".join(lines))
    for at, mark in enumerate(results_table.marks_of(rows), start=1):
        meaning = next((text for end, text in MEANINGS.items() if mark.endswith(end)), "")
        st.html(f"<small>⚠ {at}&ensp;{look.as_text(mark)}{'. ' * bool(meaning)}{look.as_text(meaning)}</small>")
    fixed: dict[str, dict[str, None]] = {}
    for name, cell in cells:
        fixed.setdefault(cell.conditional_on, {})[words(name)] = None
    if fixed and not chosen.by:
        with st.expander("What exactly the intervals hold fixed"):
            st.dataframe(
                [{"interval": text, "of": ", ".join(names)} for text, names in fixed.items()],
                placeholder="",
                hide_index=True,
            )


# -- below -------------------------------------------------------------------------------------------------------------


def figure(rows: Sequence[Row], chosen: Chosen) -> None:
    st.subheader("One metric of all rows", anchor=False)
    metrics = metrics_of(rows)
    first = next((at for at, name in enumerate(metrics) if not of_training(name)), 0)
    metric = st.selectbox(
        "Metric",
        metrics,
        first,
        key="metric",
        bind="query-params",
        format_func=words,
        label_visibility="collapsed",
        width=420,
    )
    having = [row for row in rows if metric in row.cells]
    lacking = len(rows) - len(having)
    notes = []
    if len(having) > results_chart.MOST:
        notes.append(f"The first {results_chart.MOST} of {len(having)} rows; tick rows in the table to see others.")
    if lacking:
        notes.append(f"{count(lacking, 'row')} without it {'is' if lacking == 1 else 'are'} not drawn.")
    having = having[: results_chart.MOST]
    charts.show(results_chart.chart(having, metric, bool(chosen.by)), f"results {metric}")
    held = dict.fromkeys(f"{row.cells[metric].conditional_on} (split {row.cells[metric].split})" for row in having)
    notes.append("; ".join(list(held)[:3]) + ("; ..." if len(held) > 3 else ""))
    for note in notes:
        st.html(f"<small>{look.as_text(note)}</small>")


def selections(found: Sequence[Mapping[str, Any]]) -> None:
    """Which swept values were chosen, as `cdpo results` tells it."""
    if not found:
        return
    with st.expander("How swept values were chosen", icon=":material/rule:", expanded=False):
        for title, rows in selection_tables(found):
            st.text(title)
            st.dataframe([dict(zip(SELECTION_HEAD, row, strict=True)) for row in rows], hide_index=True)


def reward_models(models: Sequence[Mapping[str, Any]]) -> None:
    """How good the reward models are themselves."""
    models = [model for model in models if model["metrics"]]
    if not models:
        return
    st.subheader("Reward models", anchor=False)
    metrics = list(dict.fromkeys(name for model in models for name in model["metrics"]))
    st.caption("On the pairs that are held out, with 95 % intervals over prompts.")
    frame, shown_as = results_table.reward_models(models, metrics)
    st.dataframe(frame, column_config=shown_as, hide_index=True, placeholder="", row_height=ROW_HEIGHT)


page()
