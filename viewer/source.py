"""Which store the viewer shows: `$CDPO_STORE`, or `./.cdpo` above the viewer's own folder."""

import os
from pathlib import Path

import streamlit as st

from cdpo.store import Store


def wanted() -> Path:
    """The folder of the store, whether or not it is there."""
    given = os.environ.get("CDPO_STORE")
    if given:
        return Path(given).expanduser().resolve()
    here = Path.cwd()
    # `cd viewer && streamlit run app.py`: the store is the project's
    return (here.parent if here.name == "viewer" and not (here / ".cdpo").is_dir() else here) / ".cdpo"


def shown() -> Store | None:
    """The store; None where there is none yet."""
    folder = wanted()
    return Store(folder) if (folder / "refs").is_dir() or (folder / "plans").is_dir() else None


def caption(store: Store | None) -> None:
    """One line in the sidebar that says what is shown."""
    st.caption("store")
    st.code(str(store.root if store is not None else wanted()), language=None, wrap_lines=True)
