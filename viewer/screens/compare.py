"""Compare: two runs or more on the same prompts, and all configurations with all."""

import streamlit as st

from cdpo.errors import CdpoError
from cdpo.report import by_prompt, side_by_side
from cdpo.report.groups import Group
from cdpo.report.reading import RunScores
from cdpo.viewer import (
    choices,
    compare_arena,
    compare_choices,
    compare_data,
    compare_matrix,
    compare_prompt,
    compare_prompts,
    compare_summary,
    look,
    responses,
    source,
)

TWO, ALL = "two runs", "all with all"


def page() -> None:
    look.head("Compare", "Which of two runs is better, by how much, and on which prompts.")
    store = source.shown()
    if store is None:
        return
    root = str(store.root)
    known = compare_data.listed(root, choices.tags())
    if len(known) < 2:
        look.empty(
            "Nothing to compare",
            "There are fewer than two runs here. This makes those of the tasks file:",
            "cdpo execute",
        )
        return
    view = st.segmented_control(
        "View", [TWO, ALL], default=TWO, key="mode", bind="query-params", label_visibility="collapsed"
    )
    if view == ALL:
        compare_matrix.show(store, choices.tags())
        return
    labels = compare_choices.choose(store, known)
    if labels is None:
        return
    found = compare_data.beside(root, labels, known)
    a, b = found.groups[:2]
    compare_choices.describe(labels[0], labels[1], known, [a.settings, b.settings])
    compared, why = compare_data.differences(root, labels, found)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        metric = compare_summary.choose_metric(compared) if compared else None
        seed = _seed(a, b)
    runs = [by_prompt.of_seed(group, seed) for group in found.groups]
    words = _openings(runs)
    steps = tuple(key for run in runs[:2] for key in [run.name, *run.steps, run.state])
    table = compare_data.prompts(root, steps, metric, found, seed)
    several = len(a.runs) > 1 or len(b.runs) > 1
    under = f" under seed {seed}" if several else ""
    if metric is None:
        _nothing_shared(a, b, why)
    else:
        # a judge's own outcomes are three: there is nothing to draw
        drawn = not metric.startswith(side_by_side.SIDE_BY_SIDE)
        left, right = st.columns([6, 5] if drawn else [9, 1], gap="large")
        with left:
            compare_summary.headline(metric, compared[metric], several)
        with right:
            if drawn:
                compare_summary.scatter(table, metric, words, under)
        compare_summary.every_metric(compared, why)
        compare_arena.show(root, a, b)
    st.header("Prompts", anchor=False)
    if len(table) == 0:
        look.empty(
            "No responses",
            "Neither run has answered prompts yet. Where GEN is one of their pipelines, this makes them answer:",
            "cdpo execute",
        )
        return
    prompt = compare_prompts.choose(table, runs[:2], metric, words, under)
    if prompt is not None:
        compare_prompt.show(store, runs, labels, found.matches, prompt)


def _nothing_shared(a: Group, b: Group, why: dict[str, str]) -> None:
    missing = [group.label for group in (a, b) if not group.metrics]
    told = "They share no metric of the same meaning."
    if missing:
        told = f"Not finished yet, and without results: {' and '.join(missing)}."
    look.empty("Nothing is measured in both", responses.escaped(told), "cdpo status")
    for name, reason in why.items():
        st.caption(responses.escaped(f"{name}: {reason}."))


def _seed(a: Group, b: Group) -> int:
    """Under which seed responses are shown, where there are several."""
    seeds = by_prompt.seeds(a, b)
    if len(a.runs) == len(b.runs) == 1 or len(seeds) == 1:
        return seeds[0]
    chosen = st.selectbox("Prompts and responses of seed", seeds, key="seed", bind="query-params", width=240)
    return seeds[0] if chosen is None else int(chosen)


def _openings(runs: list[RunScores]) -> dict[str, str]:
    found: dict[str, str] = {}
    for run in runs[:2]:
        file = by_prompt.answers(run)
        if file is not None:
            found |= compare_data.openings(str(file), run)
    return found


try:
    page()
except CdpoError as error:
    st.error(responses.escaped(str(error)), icon=":material/error:")
