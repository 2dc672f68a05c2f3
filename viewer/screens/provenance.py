"""Provenance: from any number to the steps that made it, and what is known of each of them."""

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import streamlit as st

from cdpo.engine.show.words import duration
from cdpo.plan.estimates import show_size
from cdpo.plan.states import differences
from cdpo.report.board import OVER, Board
from cdpo.report.provenance import Figure, Node, Provenance, as_told, hashed, last_lines, log_of, members, rebuilt_by
from cdpo.store.names import short
from cdpo.viewer import board_data, board_grid, choices, look, provenance_data, provenance_graph, source

#: runs of which the steps are drawn at once, steps among which another is chosen, lines of a log
MOST_RUNS, MOST_OTHERS, MOST_LINES = 4, 200, 200

root = str(source.wanted())


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
        if named is not None and "step" not in st.session_state:
            # with its whole name in the address: what a widget does not know is taken out of that
            st.query_params["step"] = named
            st.rerun()
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
        st.session_state["number"] = next((one for one in options if name and one.rpartition(" = ")[0] == name), None)
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


def open_step(figure: Figure | None) -> None:
    """Look at the step that measured a number which was just chosen."""
    if figure is not None:
        st.session_state["step"] = short(figure.key)


def show_hashed(node: Node, steps: Provenance) -> None:
    rows = hashed(node, lambda key: steps.node(key).label)
    if not rows:
        st.info("Nothing here tells what it is made from: its plan and its manifest are gone.")
        return
    st.caption(
        "A step's key is the hash of these. What stands as the code has it by default is left out of the hash, so that "
        "a new setting changes no old key."
    )
    everything = st.toggle("Defaults too", key="defaults", bind="query-params")
    shown = [row for row in rows if everything or not row.default]
    table = pd.DataFrame(
        {
            "kind": [f"{row.kind}, default" if row.default else row.kind for row in shown],
            "name": [row.name for row in shown],
            "value": [row.value for row in shown],
        }
    )
    st.dataframe(
        table, hide_index=True, width="stretch", column_config={"value": st.column_config.TextColumn(width="large")}
    )
    st.text(f"key {node.key}")


def show_manifest(node: Node, steps: Provenance) -> None:
    manifest = node.manifest
    if manifest is None:
        why = node.problem if node.state == "damaged" else "The step is not finished, and so has no manifest."
        st.html(f'<div class="cdpo-cause">{look.as_text(why)}</div>')
        return
    host, device = manifest.get("host") or {}, manifest.get("device") or {}
    versions = manifest.get("versions") or {}
    made = (
        time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest["finished"])) if "finished" in manifest else "unknown"
    )
    facts = {
        "finished": made,
        "took": duration(manifest["seconds"]),
        "attempt": str(manifest.get("attempt", "unknown")),
        "machine": ", ".join(str(host[name]) for name in ("name", "cpu", "system") if name in host) or "unknown",
        "device": ", ".join(str(device[name]) for name in ("kind", "processes", "gpus") if device.get(name))
        or "unknown",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value) or "unknown",
        "code": str(manifest.get("code") or "unknown"),
    }
    lines = "".join(f"<tr><th>{name}</th><td>{look.as_text(value)}</td></tr>" for name, value in facts.items())
    st.html(f'<table class="cdpo-devices">{lines}</table>')
    outputs = manifest["outputs"]
    files = pd.DataFrame(
        {
            "file": list(outputs),
            "size": [show_size(each["size"]) for each in outputs.values()],
            "there": [(node.folder / "out" / name).exists() for name in outputs] if node.folder else False,
            "sha256": [each["sha256"] for each in outputs.values()],
        }
    )
    st.dataframe(files, hide_index=True, width="stretch")
    with st.expander("What it said of itself (summary)"):
        st.json(manifest.get("summary") or {}, expanded=2)


def show_log(node: Node, steps: Provenance) -> None:
    log = log_of(node)
    if log is None:
        st.info("It has no log: it has not run yet, or its work is gone.")
        return
    lines, whole = last_lines(log, MOST_LINES)
    said = f"{log}, {show_size(log.stat().st_size)}{'' if whole else f'; its last {len(lines)} lines'}"
    st.html(
        f'<div class="cdpo-path">{look.as_text(said)}</div>'
        f'<div class="cdpo-log">{look.as_text(chr(10).join(lines)) or "it is empty"}</div>'
    )
    # read when it is asked for, not before
    st.download_button("All of it", lambda: log.read_bytes(), file_name=f"{node.pipeline}-{short(node.key)}.log")


def show_differences(node: Node, steps: Provenance) -> None:
    keys = provenance_data.others(root, node.key)
    if not keys or node.described is None:
        st.info(f"There is no other {node.pipeline} step to compare it with.")
        return
    options = {f"{short(key)} {steps.node(key).name}": key for key in keys[:MOST_OTHERS]}
    if st.session_state.get("other") not in options:
        st.session_state.pop("other", None)
    other = steps.node(options[st.selectbox("Compared with", list(options), key="other", bind="query-params")])
    if len(keys) > MOST_OTHERS:
        st.caption(f"The {MOST_OTHERS} nearest of {len(keys)}, the nearest first.")
    found = differences(node.described, other.described or {})
    if not found:
        st.info("They are made from the same.")
        return
    table = pd.DataFrame(
        {
            "what": list(found),
            "this step": [_told(mine, steps) for _, mine in found.values()],
            "the other": [_told(theirs, steps) for theirs, _ in found.values()],
        }
    )
    st.dataframe(table, hide_index=True, width="stretch")


def _told(value: object, steps: Provenance) -> str:
    """A value; a step by its name where it is one."""
    key = steps.find(value) if isinstance(value, str) and len(value) == 64 else None
    return steps.node(key).label if key else as_told(value)


def show_rebuild(node: Node, steps: Provenance) -> None:
    if node.state == "missing":
        st.write("No plan asks for it, and it is not in this store. It comes back with a tasks file that asks for it.")
    for command, what in rebuilt_by(node, bool(steps.runs_with(node.key))):
        st.caption(what)
        st.code(command, language="sh")
    if node.state == "evicted":
        st.caption("Its weights were removed to save room; the next `cdpo execute` that needs them makes them again.")


#: what can be looked at of a step: how the choice is called, and who shows it
ABOUT: dict[str, Callable[[Node, Provenance], None]] = {
    "What was hashed": show_hashed,
    "Manifest": show_manifest,
    "Log": show_log,
    "Differences": show_differences,
    "Make it again": show_rebuild,
}


def show_step(node: Node, steps: Provenance) -> None:
    runs = steps.runs_with(node.key)
    mark = (
        f'<span class="cdpo-mark {node.state}">{board_grid.MARKS[node.state]}</span> {board_grid.MEANINGS[node.state]}'
    )
    took = f", in {duration(node.manifest['seconds'])}" if node.manifest else ""
    part_of = f"part of {', '.join(runs[:3])}{f' and {len(runs) - 3} more' if len(runs) > 3 else ''}" if runs else ""
    problem = f'<div class="cdpo-cause">{look.as_text(node.problem[:2000])}</div>' if node.problem else ""
    st.html(
        f"<div><b>{look.as_text(node.pipeline)}</b> {board_grid.breakable(node.name)}</div>"
        f"<div>{mark}{took}</div>{problem}"
        f'<div class="cdpo-path">{look.as_text(str(node.folder or ""))}</div>'
        f'<div class="cdpo-path">{board_grid.breakable(part_of)}</div>'
    )
    about = st.segmented_control(
        "About",
        list(ABOUT),
        default="What was hashed",
        required=True,
        key="about",
        bind="query-params",
        label_visibility="collapsed",
    )
    ABOUT[about or "What was hashed"](node, steps)


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
    made = next((node for node in reversed(nodes) if node.state in OVER), nodes[-1])
    default = steps.node(figure.key) if figure else next((node for node in nodes if node.key == wanted), made)
    if figure:
        show_figure(figure, len(chain))
    picture = st.container()
    chosen = choose_step(nodes, default)
    query = [*(("tag", tag) for tag in choices.tags()), *(("runs", run) for run in st.session_state.get("runs", ()))]
    query += [(name, value) for name in ("number", "about") if (value := st.session_state.get(name))]
    picture.html(provenance_graph.drawn(nodes, query, chosen.key, chain))
    show_step(chosen, steps)


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
