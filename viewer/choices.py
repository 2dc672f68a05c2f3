"""What is chosen, kept in the URL: a page that is opened by its address shows the same again.

Every widget that decides what is shown has `bind="query-params"`; its key is the name in the URL.
"""

import streamlit as st

from cdpo.store import Store
from cdpo.viewer import data

TAGS = "tag"


def choose_tags(store: Store) -> None:
    """The sidebar's choice of tags; none chosen means all."""
    known = data.tags(str(store.root))
    st.multiselect("Experiments (tags)", known, key=TAGS, bind="query-params", placeholder="all")


def tags() -> tuple[str, ...]:
    """The chosen tags; () for all."""
    return tuple(st.session_state.get(TAGS, ()))
