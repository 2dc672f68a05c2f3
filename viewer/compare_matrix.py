"""All configurations with all others, by a metric or by a judge: a heat-map, and what is resolved in all of it."""

import html
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from cdpo.report.differences import REFERENCE
from cdpo.report.groups import Group
from cdpo.report.side_by_side import SIDE_BY_SIDE, label_of, signed
from cdpo.report.tables import number
from cdpo.store import Store
from cdpo.viewer import compare_data, compare_summary, look, responses
from cdpo.viewer.compare_choices import COLOURS, Known

#: of more configurations, only these are compared unasked
MOST = 12


def show(store: Store, tags: tuple[str, ...]) -> None:
    """The whole view."""
    root = str(store.root)
    known = compare_data.configurations(root, tags)
    names = _chosen(known)
    if len(names) < 2:
        st.info("Choose two configurations at least.", icon=":material/grid_on:")
        return
    found = compare_data.beside(root, names, known)
    metrics = _shared(found.groups)
    metrics += list(dict.fromkeys(f"{SIDE_BY_SIDE}{each.judge}" for each in found.matches))
    if not metrics:
        look.empty("Nothing is measured in two of them", "Their evaluations are not finished yet.", "cdpo status")
        return
    by = st.selectbox("Compared by", metrics, key="metric", bind="query-params", width=420) or metrics[0]
    made = compare_data.matrix(root, by, names, tags[0] if len(tags) == 1 else None)
    _heat_map(made, by)
    _table(made)
    for label, why in made["left_out"].items():
        st.caption(responses.escaped(f"Left out: {label}, for it {why}." if label in known else f"{label}: {why}."))


def _chosen(known: Known) -> tuple[str, ...]:
    """The labels of the configurations; a run that is chosen elsewhere stands for its configuration."""
    of = {label_of(ref): label for label, refs in known.items() for ref in refs}
    asked = [of.get(each, each) for each in _asked()]
    picked = [each for each in dict.fromkeys(asked) if each in known]
    st.multiselect(
        f"Configurations, of {len(known):,}",
        [*known, *(run for run in of if run not in known)],
        key="runs",
        bind="query-params",
        placeholder=f"the first {MOST}" if len(known) > MOST else "all",
    )
    return tuple(picked or list(known)[:MOST])


def _asked() -> list[str]:
    given = st.session_state.get("runs")
    found: list[str] = st.query_params.get_all("runs") if given is None else given
    return found


def _shared(groups: list[Group]) -> list[str]:
    """Metrics that two of them have."""
    names = dict.fromkeys(name for group in groups for name in group.metrics)
    found: dict[str, dict[str, Any]] = {
        name: {}
        for name in names
        if sum(bool(group.having(name)) for group in groups) > 1
        and next(group for group in groups if group.having(name)).having(name)[0].metrics[name].kind not in REFERENCE
    }
    return list(compare_summary.in_order(found))


def _heat_map(made: dict[str, Any], by: str) -> None:
    better = -1 if made["better"] == "lower" else 1
    judged = "judge" in made
    cells = []
    for pair in made["pairs"]:
        if pair["difference"] is None:
            continue
        for row, column, sign in ((pair["b"], pair["a"], 1), (pair["a"], pair["b"], -1)):
            difference = sign * pair["difference"]
            resolved = pair["verdict"] != "not resolved"
            ends = [] if pair["low"] is None else sorted(sign * pair[end] for end in ("low", "high"))
            cells.append(
                {
                    "row": row,
                    "column": column,
                    "text": f"{(1 + difference) / 2:.0%}" if judged else signed(difference),
                    "shade": (1 if better * difference > 0 else -1) if resolved else 0,
                    "row is": made["runs"][row - 1]["label"],
                    "column is": made["runs"][column - 1]["label"],
                    "row minus column": signed(difference, 3),
                    "95 %": " to ".join(signed(end, 3) for end in ends),
                    "p, corrected": "" if pair["p_holm"] is None else compare_summary.p_value(pair["p_holm"]),
                    "prompts": pair["n"],
                }
            )
    frame = pd.DataFrame(cells)
    size = len(made["runs"])
    numbers = list(range(1, size + 1))
    told = ("row is", "column is", "row minus column", "95 %", "p, corrected", "prompts")
    base = alt.Chart(frame).encode(
        x=alt.X(
            "column:O", scale=alt.Scale(domain=numbers), axis=alt.Axis(orient="top", labelAngle=0), title="against no."
        ),
        y=alt.Y("row:O", scale=alt.Scale(domain=numbers), title="no."),
        tooltip=[alt.Tooltip(f"{name}:N") for name in told],
    )
    scale = alt.Scale(domain=[-1, 0, 1], range=[COLOURS["B"], COLOURS["tie"], COLOURS["A"]])
    squares = base.mark_rect(cornerRadius=3).encode(
        color=alt.Color("shade:O", scale=scale, legend=None),
        opacity=alt.condition("datum.shade != 0", alt.value(0.85), alt.value(0.15)),
    )
    words = base.mark_text(fontSize=12, fontWeight=600).encode(
        text="text:N", color=alt.condition("datum.shade != 0", alt.value("white"), alt.value(COLOURS["tie"]))
    )
    st.altair_chart(
        (squares + words).properties(height=70 + 34 * size, width=110 + 62 * size).configure_view(strokeWidth=0),
        width="content",
    )
    what = (
        "share of prompts that the row wins against the column, ties counting half"
        if judged
        else (f"row minus column, in {compare_summary.in_words(by)}{', where lower is better' if better < 0 else ''}")
    )
    st.caption(
        responses.escaped(
            f"{len(made['pairs'])} pairs: {what}. Blue: the row is better; orange: it is worse; grey: not resolved. "
            f"Tests are corrected for all pairs (Holm, {made['level']:.0%}); held fixed: {made['conditional_on']}."
        )
    )


def _table(made: dict[str, Any]) -> None:
    """Who is behind each number; long names are wrapped, so that no two look the same."""
    head = ("no.", "configuration", "seeds", "share won" if "judge" in made else "mean", "Elo", "n")
    rows = [
        (
            str(run["number"]),
            run["label"],
            ", ".join(map(str, run["seeds"])),
            number(run["mean"]),
            f"{run['elo']:.0f}",
            f"{run['n']:,}",
        )
        for run in made["runs"]
    ]
    cells = "".join(f'<div style="opacity: 0.65">{name}</div>' for name in head)
    cells += "".join(f"<div>{html.escape(cell)}</div>" for row in rows for cell in row)
    st.html(
        '<div style="display: grid; grid-template-columns: max-content 1fr repeat(4, max-content); '
        f'gap: 0.25rem 1.2rem; overflow-wrap: anywhere; font-size: 0.92rem">{cells}</div>'
    )
    st.caption("Elo is of wins by prompt, over a mean of zero.")
