"""What the Provenance page reads of a store, kept between reruns; every function takes the store's folder as text."""

from pathlib import Path
from typing import Any

import streamlit as st

from cdpo.errors import CdpoError
from cdpo.report.provenance import Figure, Provenance
from cdpo.store import Store
from cdpo.viewer import board_data, data

#: seconds; finished steps do not change
FRESH = 30.0


def provenance(root: str) -> Provenance:
    """The steps as they stand now."""
    return Provenance(Store(Path(root)), board_data.board(root))


@st.cache_data(ttl=FRESH, show_spinner="Reading its numbers ...", max_entries=32)
def figures(root: str, label: str) -> list[Figure]:
    """The numbers of a run; none where it has none yet, or where what it measured is damaged."""
    ref = _ref(root, label)
    try:
        return provenance(root).figures(ref) if ref is not None else []
    except CdpoError:
        return []


@st.cache_data(ttl=FRESH, show_spinner="Looking for steps like it ...", max_entries=32)
def others(root: str, key: str) -> list[str]:
    """Keys of the other steps of the same pipeline, the nearest first."""
    found = provenance(root)
    return [each.key for each in found.others(found.node(key))]


def _ref(root: str, label: str) -> dict[str, Any] | None:
    return next((ref for ref in data.refs(root) if f"{ref['tag']}/{ref['name']}" == label), None)
