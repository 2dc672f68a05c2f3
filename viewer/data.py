"""What pages read of a store, kept between reruns. Every function takes the store's folder as text, for the cache."""

from pathlib import Path
from typing import Any

import streamlit as st

from cdpo.report.collect import collect
from cdpo.store import Store

#: seconds after which the store is looked at again: a page that is clicked through does not read it for every click
FRESH = 5.0


@st.cache_data(ttl=FRESH, show_spinner="Reading results ...", max_entries=8)
def collected(root: str, tags: tuple[str, ...]) -> dict[str, Any]:
    """`cdpo.report.collect.collect` of the runs under `tags`; () for all."""
    return collect(root, tags or None)


@st.cache_data(ttl=FRESH, show_spinner=False, max_entries=8)
def tags(root: str) -> list[str]:
    """The tags that there are runs under."""
    found: list[str] = Store(Path(root)).tags()
    return found


@st.cache_data(ttl=FRESH, show_spinner=False, max_entries=8)
def refs(root: str) -> list[dict[str, Any]]:
    """Every run that the store knows: name, tag, seed, method, model, dataset, params, steps, marks."""
    return list(Store(Path(root)).read_refs())


def is_busy(store: Store) -> bool:
    """Whether a step of the store is being made now."""
    return any(store.is_locked(key) for key in store.working())
