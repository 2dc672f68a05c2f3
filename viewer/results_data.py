"""What the pages Results and Curves read besides `data.collected`, kept between reruns."""

from pathlib import Path
from typing import Any

import streamlit as st

from cdpo.report import facts
from cdpo.report.collect import PARTS, collect
from cdpo.store import Store
from cdpo.viewer import data


def collected(root: str, tags: tuple[str, ...], every: bool, parts: tuple[str, ...] = PARTS) -> dict[str, Any]:
    """`parts` of `cdpo.report.collect.collect`, of the runs under `tags` (() for all); with `every`, all values of what
    was swept, also where one was chosen. Nobody changes it: it is the same object for all who ask."""
    found: dict[str, Any] = _collected(root, tags, not every, parts)
    return found


# as a resource: to copy the results of a thousand runs for every click takes longer than the click
@st.cache_resource(ttl=data.FRESH, show_spinner="Reading results ...", max_entries=8)
def _collected(root: str, tags: tuple[str, ...], select: bool, parts: tuple[str, ...]) -> dict[str, Any]:
    return collect(root, tags or None, select=select, parts=parts)


@st.cache_data(ttl=data.FRESH, show_spinner=False, max_entries=4)
def published(root: str) -> dict[str, dict[str, str]]:
    """`tag/name` of a run -> its addresses on the hub, by kind: `model`, `dataset`."""
    return facts.published(Store(Path(root)))
