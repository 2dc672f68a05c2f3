"""Better and safer: how often B answers better or worse than A by a reward, and safely or unsafely by a cost."""

from typing import Any

import streamlit as st

from cdpo.report.arena import compare_in_arena
from cdpo.report.arena_text import render_arena
from cdpo.report.groups import Group
from cdpo.viewer import responses


def show(root: str, a: Group, b: Group) -> None:
    """Where a reward and a cost model score both, their counts on demand."""
    rewards, costs = _shared(a, b)
    if not rewards or not costs:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        wanted = st.toggle("Better and safer", key="arena", bind="query-params")
        if not wanted:
            return
        reward = st.selectbox("Reward", rewards, key="reward", bind="query-params", width=260) or rewards[0]
        cost = st.selectbox("Cost", costs, key="cost", bind="query-params", width=260) or costs[0]
    st.code(render_arena(_counted(root, a.label, b.label, reward, cost)), language=None)
    st.caption(responses.escaped("Safe is what the cost model gives 0 or less."))


def _shared(a: Group, b: Group) -> tuple[list[str], list[str]]:
    """Labels of rewards and of costs by which both are scored."""
    both = {name: each for name, each in a.runs[0].scored.items() if name in b.runs[0].scored}
    return ([name for name, each in both.items() if not each.reverse], [name for name in both if both[name].reverse])


@st.cache_data(ttl=60, max_entries=4, show_spinner="Counting ...")
def _counted(root: str, a: str, b: str, reward: str, cost: str) -> dict[str, Any]:
    return compare_in_arena(root, a, b, reward, cost)
