"""What the pages Results and Curves read besides `data.collected`, kept between reruns."""

from pathlib import Path
from typing import Any

import streamlit as st

from cdpo.report import facts
from cdpo.report.collect import collect
from cdpo.store import Store
from cdpo.viewer import data


def collected(root: str, tags: tuple[str, ...], every: bool) -> dict[str, Any]:
    """As `data.collected`; with `every`, all values of what was swept, also where one was chosen."""
    found: dict[str, Any] = _every(root, tags) if every else data.collected(root, tags)
    return found


@st.cache_data(ttl=data.FRESH, show_spinner="Reading results ...", max_entries=4)
def _every(root: str, tags: tuple[str, ...]) -> dict[str, Any]:
    return collect(root, tags or None, select=False)


@st.cache_data(ttl=data.FRESH, show_spinner=False, max_entries=4)
def training_seconds(root: str) -> dict[str, float]:
    """`tag/name` of a run -> seconds that its training took."""
    return facts.training_seconds(data.refs(root), Store(Path(root)).finished())


@st.cache_data(ttl=data.FRESH, show_spinner=False, max_entries=4)
def published(root: str) -> dict[str, dict[str, str]]:
    """`tag/name` of a run -> its addresses on the hub, by kind: `model`, `dataset`."""
    return facts.published(Store(Path(root)))
