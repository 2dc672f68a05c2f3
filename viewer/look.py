"""How things look that every page has: headings, what is not there yet, and texts that nobody vouches for."""

import html
from pathlib import Path
from typing import NoReturn

import streamlit as st

#: of the browser's tab
ICON = Path(__file__).parent / "icon.svg"


def style() -> None:
    """The rules of style that Streamlit's own theme has no words for."""
    st.html(Path(__file__).parent / "style.css")


def head(title: str, about: str) -> None:
    """A page's heading and one sentence of what it answers."""
    st.title(title, anchor=False)
    st.caption(about)


def empty(what: str, why: str, command: str | None = None) -> None:
    """A designed empty state: what is not there, why, and the command that makes it."""
    with st.container(border=True):
        st.markdown(f":material/inbox: **{what}**")
        st.write(why)
        if command:
            st.code(command, language="sh")


def nothing_yet(folder: Path) -> None:
    """No store at all."""
    st.title("Nothing to show yet", anchor=False)
    why = f"Nothing was made in `{folder}` yet. These commands begin:"
    empty("There is no store here.", why, "cdpo prep\ncdpo execute")


def trouble(said: str) -> NoReturn:
    """What keeps the page from being shown, as a text; the page ends here."""
    st.title("This cannot be shown", anchor=False)
    with st.container(border=True):
        st.text(said)
    st.stop()
    raise AssertionError("st.stop ends the page")


def as_text(text: str) -> str:
    """Untrusted text as HTML that shows it and does nothing: markup is escaped, control characters become visible."""
    visible = "".join(
        each if each in "\n\t" or each.isprintable() else f"\\u{ord(each):04x}" for each in text.replace("\r\n", "\n")
    )
    return html.escape(visible)
