"""How a prompt or a response is shown: a text that nobody vouches for, which may hold anything and be of any length."""

import html
import re

import streamlit as st

from cdpo.viewer import look

#: characters of one text that a page sends to the browser; the whole is there to be downloaded
MOST_SHOWN = 20_000
#: a taller text scrolls in itself, so that responses stay side by side
TALLEST = "34rem"

_MARKDOWN = re.compile(r"([\\\\`*_{}\[\]()#+\-.!$~<>|:&])")
#: beginnings of what becomes a link without any markup
_ADDRESS = re.compile(r"https?:(?=//)|www(?=\.)|@", re.IGNORECASE)
#: a piece of a text, as of cdpo/report/words.py: ("same", "insert" or "delete", the text)
Piece = tuple[str, str]


def show_text(
    text: str | None, *, key: str, pieces: list[Piece] | None = None, over: str = "", tallest: str = TALLEST
) -> None:
    """Show `text` as it is: nothing in it is markup, and control characters are visible.

    `pieces` show it with marks instead, where they do not reach beyond what is shown. `key` names the text on the page,
    for its download where it is too long; `over` stands above it, small; what is taller than
    `tallest` (as in CSS) scrolls. None is no text at all.
    """
    head = f'<div style="opacity: 0.65; font-size: 0.85rem">{html.escape(label(over))}</div>' if over else ""
    if text is None or not text.strip():
        told = "no response" if text is None else "white space alone" if text else "an empty text"
        st.html(f'{head}<div style="opacity: 0.65; font-style: italic">{told}</div>')
        return
    if len(text) > MOST_SHOWN:
        pieces = None
    inner = marked(pieces) if pieces is not None else look.as_text(text[:MOST_SHOWN])
    # dir="auto": each text runs as its own letters do, whatever stands beside it
    st.html(f'{head}<div class="cdpo-text" dir="auto" style="max-height: {tallest}; overflow-y: auto">{inner}</div>')
    if len(text) > MOST_SHOWN:
        st.caption(f"the first {MOST_SHOWN:,} of {len(text):,} characters")
        st.download_button(
            "Download all of it",
            text.encode("utf-8", "surrogatepass"),
            file_name=f"{safe_file(key)}.txt",
            mime="text/plain",
            key=f"download {key}",
            on_click="ignore",
            icon=":material/download:",
        )


def show_messages(messages: list[dict[str, str]], *, key: str) -> None:
    """A conversation, each message with its role."""
    for at, message in enumerate(messages):
        show_text(message["content"], key=f"{key} {at}", over=message["role"])


def marked(pieces: list[Piece]) -> str:
    """HTML of a text with its marks."""
    tags = {"same": "{}", "insert": "<ins>{}</ins>", "delete": "<del>{}</del>"}
    return "".join(tags[kind].format(look.as_text(text)) for kind, text in pieces)


def label(text: str, most: int = 80) -> str:
    """The beginning of an untrusted text in one line, with nothing in it that is not printable."""
    line = " ".join(text[: 8 * most].split())
    line = "".join(each if each.isprintable() else "�" for each in line)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def escaped(text: str) -> str:
    """A text that is not the project's own, for where Streamlit reads Markdown; control characters become visible."""
    text = "".join(each if each in "\n\t" or each.isprintable() else f"\\u{ord(each):04x}" for each in text)
    # an address is made a link even so: it is parted where nobody sees it
    return _MARKDOWN.sub(r"\\\1", _ADDRESS.sub("\\g<0>\u2060", text))


def safe_file(name: str) -> str:
    """A file name made of a name."""
    return "".join(each if each.isalnum() or each in "-_." else "_" for each in name)[:100]
