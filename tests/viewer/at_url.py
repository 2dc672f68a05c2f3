"""A page of the app by its whole address: also what only this page keeps in the URL."""

import os

import streamlit as st
from streamlit.testing.v1 import AppTest

from tests.viewer.conftest import APP


def open_url(monkeypatch, store, page, tags=(), **url):
    """The app at `page` with `url` in its address, and `tags` chosen in the sidebar."""
    monkeypatch.setenv("CDPO_STORE", os.fspath(store))
    st.cache_data.clear()
    st.cache_resource.clear()
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.switch_page(f"screens/{page}.py")
    for name, value in {"tag": list(tags), **url}.items():
        if value:
            app.query_params[name] = value
    return app.run()
