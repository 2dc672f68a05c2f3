"""The downloads of the page Results: what `cdpo results` writes, of the tags that are shown."""

import functools
import json
from collections.abc import Callable
from typing import Any

import streamlit as st

from cdpo.report.collect import collect
from cdpo.report.paper import results_tables
from cdpo.report.tables import to_csv
from cdpo.report.typeset import typeset

#: label, end of the file's name, what browsers call it, and how it is written
FORMS: tuple[tuple[str, str, str, Callable[[dict[str, Any]], str]], ...] = (
    ("CSV", "csv", "text/csv", to_csv),
    ("JSON", "json", "application/json", json.dumps),
    ("LaTeX", "tex", "text/x-tex", lambda found: typeset(results_tables(found), "latex", "results")),
    ("Markdown", "md", "text/markdown", lambda found: typeset(results_tables(found), "markdown", "results")),
)


def buttons(root: str, tags: tuple[str, ...], every: bool) -> None:
    """One for each form; a file is made only when its button is pressed."""
    for label, end, mime, form in FORMS:
        data = functools.partial(written, form, root, tags, every)
        name = f"results.{end}"
        st.download_button(label, data, name, mime, on_click="ignore", key=f"download {name}", width="stretch")


def written(form: Callable[[dict[str, Any]], str], root: str, tags: tuple[str, ...], every: bool) -> str:
    """The text of a file, of what the store holds now; `every` as in `results_data.collected`."""
    return form(collect(root, tags or None, select=not every))
