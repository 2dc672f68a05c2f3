"""Provenance: from any number to the steps that made it, and what is known of each of them."""

from pathlib import Path

import streamlit as st

from cdpo.report.board import OVER, Board
from cdpo.report.provenance import Figure, Node, members
from cdpo.store.names import short
from cdpo.viewer import (
    board_data,
    board_grid,
    choices,
    data,
    look,
    provenance_data,
    provenance_graph,
    provenance_step,
    source,
)

#: runs of which the steps are drawn at once
MOST_RUNS = 4

store = source.shown()
assert store is not None, "the frame shows no page without a store"
root = str(store.root)


def chosen_runs(board: Board) -> list[str]:
    """Labels of the runs in the URL; a configuration stands for the runs of its seeds."""
    labels = [row.label for row in board.under(choices.tags())]
    asked = [label for label in st.query_params.get_all("runs") if label not in labels]
    configurations = [label for label in asked if members(label, [row.label for row in board.rows])]
    found = st.multiselect(
        "Runs", [*labels, *configurations], key="runs", bind="query-params", placeholder="choose one, or a few"
    )
    every = [row.label for row in board.rows]
    return list(dict.fromkeys(each for label in found for each in members(label, every)))


def choose_step(nodes: list[Node], default: Node) -> Node:
    """The step that is looked at: `?step=` and the beginning of its key, or what was chosen here."""
    options = {board_grid.step_name(node.pipeline, node.key): node for node in nodes}
    asked = str(st.session_state.get("step") or st.query_params.get("step") or "")
    if asked not in options:
        fitting = (name for name, node in options.items() if asked and node.key.startswith(asked.split()[-1]))
        preset = next((name for name, node in options.items() if node is default), None)
        named = next(fitting, None)
        _write_out("step", named)
        st.session_state["step"] = named or preset
    # no default of its own: what is the default is left out of the address, and here that changes with the run
    found = st.selectbox("Step", list(options), index=None, key="step", bind="query-params")
    return options[found] if found else default


def choose_figure(runs: list[str]) -> Figure | None:
    """The number that is followed back to its steps; its run is in its name where there are several."""
    options: dict[str, Figure] = {}
    for run in runs:
        for figure in provenance_data.figures(root, run):
            of = f" of {run}" if len(runs) > 1 else ""
            options[f"{figure.name}{of} = {figure.value['mean']:.4g}"] = figure
    asked = str(st.session_state.get("number") or st.query_params.get("number") or "")
    if asked not in options:
        # another address, or the number has changed: what stands before its value tells which it was
        name = asked.rpartition(" = ")[0] or asked
        named = next((one for one in options if name and one.rpartition(" = ")[0] == name), None)
        _write_out("number", named)
        st.session_state["number"] = named
    found = st.selectbox(
        "Number",
        list(options),
        index=None,
        key="number",
        bind="query-params",
        placeholder="follow one back to its steps" if options else "nothing is measured yet",
        disabled=not options,
        on_change=lambda: open_step(options.get(st.session_state["number"])),
    )
    return options.get(found) if found else None


def _write_out(name: str, value: str | None) -> None:
    """Have the address say `value` in full where it said it in short: a widget takes out what it does not know."""
    if value is not None and name not in st.session_state:
        st.query_params[name] = value
        st.rerun()


def open_step(figure: Figure | None) -> None:
    """Look at the step that measured a number which was just chosen."""
    if figure is not None:
        st.session_state["step"] = short(figure.key)


def show() -> None:
    board, steps = board_data.board(root), provenance_data.provenance(root)
    if not board.rows:
        look.empty(
            "No runs yet.", "There is nothing to follow back. These commands make runs:", "cdpo prep\ncdpo execute"
        )
        return
    rows = board.under(choices.tags()) or board.rows
    left, right = st.columns([3, 2])
    with left:
        runs = chosen_runs(board)
    asked = str(st.session_state.get("step") or st.query_params.get("step") or "").split()
    wanted = steps.find(asked[-1]) if asked else None
    if asked and wanted is None and not runs:
        st.warning("This store knows no step of the key in the address; a run of it is shown instead.")
    if not runs and wanted is not None:
        runs = [
            label for label in steps.runs_with(wanted) if not choices.tags() or label.split("/")[0] in choices.tags()
        ][:1]
        keys = [wanted]
    else:
        if not runs:
            runs = [rows[0].label]
            st.html(f'<div class="cdpo-path">None is chosen, so this is {board_grid.breakable(runs[0])}.</div>')
        keys = [key for row in board.rows if row.label in runs[:MOST_RUNS] for key in row.steps]
    with right:
        figure = choose_figure(runs[:MOST_RUNS])
    if len(runs) > MOST_RUNS:
        st.caption(f"Drawn are the first {MOST_RUNS} of {len(runs)} runs.")
    nodes = steps.behind([*keys, *([figure.key] if figure else [])])
    chain = {node.key for node in steps.behind([figure.key])} if figure else set()
    # what trained the run says most of it; else what was made last
    methods = {ref["method"] for ref in data.refs(root) if f"{ref['tag']}/{ref['name']}" in runs}
    trained = next((node for node in reversed(nodes) if node.pipeline in methods), None)
    made = trained or next((node for node in reversed(nodes) if node.state in OVER), nodes[-1])
    default = steps.node(figure.key) if figure else next((node for node in nodes if node.key == wanted), made)
    if figure:
        show_figure(figure, len(chain))
    picture = st.container()
    chosen = choose_step(nodes, default)
    query = [*board_data.kept(), *(("runs", run) for run in st.session_state.get("runs", ()))]
    query += [(name, value) for name in ("number", "about") if (value := st.session_state.get(name))]
    picture.html(provenance_graph.drawn(nodes, query, chosen.key, chain))
    provenance_step.show_step(chosen, steps)


def show_figure(figure: Figure, behind: int) -> None:
    value = figure.value
    interval = "" if value["low"] is None else f", 95 % interval {value['low']:.4g} to {value['high']:.4g}"
    st.html(
        f"<b>{look.as_text(figure.name)} = {value['mean']:.4g}</b>{interval}, over {value['n']} prompts of "
        f"{look.as_text(str(value['split']))}; {behind} steps made it, marked below."
    )


look.head("Provenance", "From a number to the steps that made it, what each was made from, and how it is made again.")
st.html(Path(board_grid.__file__).parent / "board.css")
show()
