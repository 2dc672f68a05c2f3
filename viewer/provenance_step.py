"""What is known of one step, one thing at a time: what it was hashed from, its manifest, its log, what differs."""

import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import streamlit as st

from cdpo.engine.show.words import duration
from cdpo.plan.estimates import show_size
from cdpo.plan.states import differences
from cdpo.report.provenance import Node, Provenance, as_told, hashed, last_lines, log_of, read_log, rebuilt_by
from cdpo.store.names import short
from cdpo.viewer import board_grid, look, provenance_data

#: steps among which another is chosen, lines of a log
MOST_OTHERS, MOST_LINES = 200, 200
#: seconds between two looks at a log that grows
LIVE = 3.0


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
    # one that grows is read again and again
    st.fragment(_show_log, run_every=LIVE if node.state == "running" else None)(node)


def _show_log(node: Node) -> None:
    log = log_of(node)
    if log is None:
        st.info("It has no log: it has not run yet, or its work is gone.")
        return
    lines, whole = last_lines(log, MOST_LINES)
    said = f"{log}{'' if whole else f'; its last {len(lines)} lines'}"
    st.html(
        f'<div class="cdpo-path">{look.as_text(said)}</div>'
        f'<div class="cdpo-log">{look.as_text(chr(10).join(lines)) or "it is empty"}</div>'
    )
    # read when it is asked for, not before
    st.download_button("All of it", partial(read_log, log), file_name=f"{node.pipeline}-{short(node.key)}.log")


def show_differences(node: Node, steps: Provenance) -> None:
    keys = provenance_data.others(str(steps.store.root), node.key)
    if not keys or node.described is None:
        st.info("There is no other step of its kind to compare it with.")
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
