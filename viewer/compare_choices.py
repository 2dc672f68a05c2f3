"""Which runs are compared: A, B and more, and in what they differ."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from cdpo.report import side_by_side
from cdpo.report.overview import greek
from cdpo.store import Store
from cdpo.viewer import responses

Known = dict[str, list[dict[str, Any]]]

#: one colour for A, one for B, wherever they stand; readable on light and dark
COLOURS = {"A": "#3b82c4", "B": "#d9730d", "tie": "#8a8f98"}
MOST_MORE = 3


def choose(store: Store, known: Known) -> tuple[str, ...] | None:
    """The labels of A, B and further runs; None while fewer than two are chosen."""
    _unasked(store, known)
    labels = list(known)
    left, swap, right, further = st.columns([8, 1, 8, 6], vertical_alignment="bottom")
    asked = [st.query_params.get(key) for key in ("a", "b")]
    gone = [name for name in asked if name and name not in known]
    a = left.selectbox("A", labels, index=None, key="a", bind="query-params", placeholder="a run")
    swap.button("", icon=":material/swap_horiz:", help="Change places", on_click=_swap, key="swap", width="stretch")
    b = right.selectbox("B", labels, index=None, key="b", bind="query-params", placeholder="a run")
    more = further.multiselect(
        "More beside them", labels, key="more", bind="query-params", placeholder="none", max_selections=MOST_MORE
    )
    for name in gone:
        told = f"There is no run “{responses.escaped(name)}” here, or not under the chosen tags."
        st.warning(told, icon=":material/search_off:")
    if a is None or b is None:
        st.info("Choose two runs, or two configurations over their seeds.", icon=":material/compare_arrows:")
        return None
    if a == b:
        st.info("A and B are the same: choose another.", icon=":material/compare_arrows:")
        return None
    return (a, b, *(label for label in more if label not in (a, b)))


def _unasked(store: Store, known: Known) -> None:
    """Where neither the address nor a click has chosen: two that are likely to be compared."""
    if any(key in st.session_state or key in st.query_params for key in ("a", "b")):
        return
    two = side_by_side.first_two(known, store.finished())
    if two is not None:
        put_in_address(a=two[0], b=two[1])


def put_in_address(**chosen: str) -> None:
    """Choose for a widget that is not there yet: a program's first choice is not put into the address by itself."""
    st.query_params.update(chosen)
    st.session_state.update(chosen)


def _swap() -> None:
    st.session_state["a"], st.session_state["b"] = st.session_state.get("b"), st.session_state.get("a")


def describe(a: str, b: str, known: Known, settings: Sequence[Mapping[str, Any]]) -> None:
    """Both in full, with what differs between them; `settings` of the trainings of both."""
    differ, same = side_by_side.what_differs(known[a], known[b], settings)
    rows = [("", chip("A", a), chip("B", b))]
    # what one method does not know has no default there
    unset = "default" if known[a][0]["method"] == known[b][0]["method"] else "–"
    rows += [(html.escape(greek(name)), _value(ours, unset), _value(theirs, unset)) for name, ours, theirs in differ]
    cells = "".join(
        f'<div style="opacity: 0.65">{name}</div><div>{ours}</div><div>{theirs}</div>' for name, ours, theirs in rows
    )
    st.html(
        '<div style="display: grid; grid-template-columns: max-content 1fr 1fr; gap: 0.2rem 1.5rem; '
        f'overflow-wrap: anywhere; font-size: 0.92rem">{cells}</div>'
    )
    if same:
        st.caption(responses.escaped("Both: " + ", ".join(f"{name} {value}" for name, value in same)))


def chip(letter: str, label: str = "") -> str:
    """HTML of a letter in its colour, with a name behind it."""
    colour = COLOURS.get(letter, COLOURS["tie"])
    mark = f'<b style="color: {colour}">{html.escape(letter)}</b>'
    return f"{mark} {html.escape(label)}".strip()


def _value(value: str, unset: str) -> str:
    return html.escape(value) if value else f'<span style="opacity: 0.5">{unset}</span>'
