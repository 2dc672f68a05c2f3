"""A store that the playground made (make_store.py), and the app upon it: without a browser (AppTest)."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT

STORED = Path(__file__).parent / "playground.tar.xz"
APP = ROOT / "viewer" / "app.py"
PAGES = ("results", "board", "curves", "compare", "datasets", "provenance")


@pytest.fixture(scope="session")
def playground(tmp_path_factory) -> Path:
    """A project with a finished playground store, which no test changes: `configs/`, `.cdpo/`."""
    folder = tmp_path_factory.mktemp("playground")
    with tarfile.open(STORED) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture
def open_app(monkeypatch) -> Callable[..., AppTest]:
    """`open_app(store, "results", tag="first")`: a page of the app on a store, with what stands in its URL."""
    import streamlit as st

    def opened(store: Path, page: str = "results", /, **url: str | list[str]) -> AppTest:
        monkeypatch.setenv("CDPO_STORE", os.fspath(store))
        st.cache_data.clear()
        st.cache_resource.clear()
        app = AppTest.from_file(str(APP), default_timeout=120)
        # before the first run: what opens where no page is asked for leads elsewhere, and with it the address
        app.switch_page(f"screens/{page}.py")
        for name, value in url.items():
            app.query_params[name] = value
        return app.run()

    return opened
