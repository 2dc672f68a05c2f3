"""One row of a dataset or of a run's responses: what it says, the reviewer's form, and what training sees of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from cdpo.errors import CdpoError
from cdpo.review import acts, rendering
from cdpo.review import rows as rules
from cdpo.review.sources import Source
from cdpo.store import Store
from cdpo.viewer import data, look, source
from cdpo.viewer import datasets_data as reading
from cdpo.viewer.datasets_filters import named, whole
from cdpo.viewer.responses import escaped, show_messages, show_text

#: what is said of a vote, and the key that gives it
_PAIR = {
    acts.CHOSEN: ("Chosen is better", "1"),
    acts.REJECTED: ("Rejected is better", "2"),
    acts.TIE: ("Tie", "3"),
    acts.BAD: ("Both bad", "4"),
}
_SINGLE = {acts.GOOD: ("Good", "1"), acts.BAD: ("Bad", "2")}


@dataclass(frozen=True)
class At:
    """The row that is shown."""

    store: Store
    source: Source
    row: Mapping[str, Any]
    place: acts.Place
    reviewer: str
    #: of this row alone
    measures: Mapping[str, float]
    #: by reviewer
    said: Mapping[str, acts.Review]


def show(at: At, blind: bool) -> None:
    left, right = st.columns([5, 2], gap="large")
    with left:
        _conversation(at)
        swapped = blind and int(at.place.content, 16) % 2 == 1
        _responses(at, blind, swapped)
        if not blind:
            _training(at)
    with right:
        _form(at, blind, swapped)
        if not blind:
            _others(at)


def _conversation(at: At) -> None:
    with st.container(border=True):
        show_messages(list(at.row.get("prompt") or []), key=f"{at.place.row} prompt")


def _responses(at: At, blind: bool, swapped: bool) -> None:
    if rules.is_answer(at.row):
        sides = [("Response", at.row["response"], "response")]
        if at.row.get("chosen"):
            sides.append(("The dataset's own answer, for comparison", _content(at.row["chosen"]), ""))
    else:
        sides = [
            (name.capitalize(), _content(at.row[name]), name)
            for name in (acts.CHOSEN, acts.REJECTED)
            if at.row.get(name)
        ]
        if swapped:
            sides = sides[::-1]
        if blind:
            sides = [(f"Response {letter}", content, "") for letter, (_, content, _) in zip("AB", sides, strict=False)]
    if not sides:
        return
    for column, (title, content, of) in zip(st.columns(len(sides)), sides, strict=True):
        with column, st.container(border=True, height="stretch"):
            st.markdown(f"**{title}**")
            show_text(content, key=f"{at.place.row} {title}")
            if not blind:
                _numbers(at.measures, of)
    if not blind:
        rest = {
            name: value for name, value in at.measures.items() if not _belongs(name, ("chosen", "rejected", "response"))
        }
        if rest:
            st.caption(_listed(rest))


def _numbers(measures: Mapping[str, float], of: str) -> None:
    """The numbers of one response."""
    own = {
        name: value
        for name, value in measures.items()
        if of and _belongs(name, (of,)) and "rejected" not in name.replace(of, "")
    }
    if own:
        st.caption(_listed(own))


def _belongs(name: str, sides: Sequence[str]) -> bool:
    return any(side in name.split("_") for side in sides)


def _listed(numbers: Mapping[str, float]) -> str:
    return " · ".join(
        f"{escaped(named(name))} {value:{',.0f' if whole(name) else '.4g'}}"
        for name, value in numbers.items()
        if np.isfinite(value)
    )


def _content(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n\n".join(each["content"] for each in messages)


# -- the form ---------------------------------------------------------------------------------------------------------


def _form(at: At, blind: bool, swapped: bool) -> None:
    refused = acts.refusal(at.store)
    mine = at.said.get(at.reviewer, acts.Review())
    st.markdown("**Your review**")
    if refused is not None:
        st.warning(escaped(refused), icon=":material/lock:")
    elif not at.reviewer:
        st.info("Write your name above, and what you vote is kept.", icon=":material/person:")
    off = refused is not None or not at.reviewer
    for vote, label, key in _votes(at.row, blind, swapped):
        given = mine.vote == vote
        st.button(
            label,
            key=f"review_{vote}",
            shortcut=key,
            type="primary" if given else "secondary",
            icon=":material/check:" if given else None,
            disabled=off,
            width="stretch",
            help="Press again to withdraw it." if given else None,
            on_click=_keep,
            args=(at, {"vote": None if given else vote}),
        )
    st.button(
        "Flagged" if mine.flag else "Flag",
        key="review_flag",
        shortcut="F",
        icon=":material/flag:",
        type="primary" if mine.flag else "secondary",
        disabled=off,
        width="stretch",
        help="A flagged row is left out of the export, unless you ask for it.",
        on_click=_keep,
        args=(at, {"flag": not mine.flag}),
    )
    # its own for every row and reviewer: what is written on one never appears on another
    key = f"note_{at.source.key}_{at.place.split}_{at.place.row}_{at.place.content}_{at.reviewer}"
    st.text_area(
        "Note",
        mine.note,
        key=key,
        disabled=off,
        height=90,
        max_chars=5000,
        placeholder="kept when you leave the field",
        on_change=_keep_note,
        args=(at, key),
    )
    if message := st.session_state.pop("review_trouble", None):
        st.error(escaped(message))
    elif mine.time:
        st.caption(f"saved {mine.time[:10]} {mine.time[11:16]} UTC")
    if not off and source.namespace() is not None:
        kept = escaped(str(acts.folder(at.store, at.source.key)))
        st.caption(f"Kept on this machine, in {kept}. Export or publish it, and others have it too.")


def _votes(row: Mapping[str, Any], blind: bool, swapped: bool) -> list[tuple[str, str, str]]:
    """The votes that can be given: what is kept, what is shown, and the key."""
    if rules.is_single(row):
        return [(vote, *words) for vote, words in _SINGLE.items()]
    if not blind:
        return [(vote, *words) for vote, words in _PAIR.items()]
    first, second = (acts.REJECTED, acts.CHOSEN) if swapped else (acts.CHOSEN, acts.REJECTED)
    shown = [(first, "A is better", "1"), (second, "B is better", "2")]
    return [*shown, *((vote, *_PAIR[vote]) for vote in (acts.TIE, acts.BAD))]


def _keep(at: At, changes: Mapping[str, Any]) -> None:
    try:
        acts.append(at.store, at.source.key, at.reviewer, at.place, **changes)
    except CdpoError as error:
        st.session_state["review_trouble"] = str(error)


def _keep_note(at: At, key: str) -> None:
    _keep(at, {"note": st.session_state[key]})


def _others(at: At) -> None:
    others = {who: review for who, review in at.said.items() if who != at.reviewer}
    if not others:
        return
    with st.expander(f"Others ({len(others)})", icon=":material/group:"):
        table = [
            {"reviewer": who, "vote": each.vote, "flag": "⚑" if each.flag else "", "note": each.note}
            for who, each in sorted(others.items())
        ]
        st.dataframe(pd.DataFrame(table), hide_index=True, width="stretch")


# -- what training sees -----------------------------------------------------------------------------------------------


def _training(at: At) -> None:
    if not st.toggle(
        "What a model sees of it",
        key="mask",
        bind="query-params",
        help="The text and tokens by a model's own template.",
    ):
        return
    kinds = ("policy",) if rules.is_answer(at.row) else ("policy", "reward")
    models = rendering.trained_on(at.store, _refs_of(at), at.source.key, kinds)
    if not models:
        st.caption("No model of this store has been trained on it yet, or those that were are not finished.")
        return
    label = st.selectbox("Model", list(models), key="model", bind="query-params")
    _rendered(at, models[label])


def _refs_of(at: At) -> Sequence[Mapping[str, Any]]:
    return [dict(at.source.ref)] if at.source.ref is not None else data.refs(str(at.store.root))


def _rendered(at: At, folder: Path) -> None:
    single = rules.is_answer(at.row)
    try:
        with st.spinner("Reading the tokenizer ..."):
            found = reading.renderer().ask(rendering.request(folder, at.row))
        all_count, said = rendering.counts(folder)
    except CdpoError as error:
        st.error(escaped(str(error)))
        return
    if single:
        said = "The response was drawn after the prompt as the model's template writes it."
    st.caption(
        said + (" Special tokens are framed." if single else " Counted tokens are marked; special ones are framed.")
    )
    if found["left_out"]:
        st.warning(f"This row is left out of the training of this model: {escaped(found['left_out'])}.")
    names = ["response"] if single else [name for name in ("chosen", "rejected") if at.row.get(name)]
    shown = names[:1] if folder.parent.name == "SFT" else names
    for column, at_side, name in zip(st.columns(max(1, len(shown))), range(len(shown)), shown, strict=False):
        with column, st.container(border=True):
            lengths = found["lengths"]
            if at_side >= len(found["responses"]):
                _tokens(found["prompt"], all_count)
                continue
            st.caption(f"{name}: {lengths[0]} tokens of the prompt, {lengths[at_side + 1]} of the response")
            _tokens(found["prompt"], all_count, found["responses"][at_side], counted=not single)
            left = sum(max(0, lengths[each] - rendering.MOST) for each in (0, at_side + 1))
            if left:
                st.caption(f"{left:,} more tokens are not shown")


def _tokens(
    prompt: Sequence[tuple[str, bool]],
    prompt_counts: bool,
    response: Sequence[tuple[str, bool]] = (),
    counted: bool = True,
) -> None:
    parts = [_span(*each, prompt_counts) for each in prompt] + [_span(*each, counted) for each in response]
    st.html(f'<div class="cdpo-text" dir="auto">{"".join(parts)}</div>')


def _span(piece: str, special: bool, counts: bool) -> str:
    style = "opacity:1;" if counts else "opacity:.6;"
    frame = "border:1px solid rgba(128,128,128,.6);border-radius:3px;" if special else ""
    tag = "ins" if counts else "span"
    return f'<{tag} style="{style}{frame}">{look.as_text(piece)}</{tag}>'


def moved(go: Callable[[int], str | None]) -> None:
    """The buttons to the row before and the one after."""
    before, after = go(-1), go(1)
    st.button(
        "Previous",
        shortcut="Left",
        disabled=before is None,
        key="review_previous",
        on_click=turn,
        args=(before,),
        width="stretch",
    )
    st.button(
        "Next",
        shortcut="Right",
        disabled=after is None,
        key="review_next",
        on_click=turn,
        args=(after,),
        width="stretch",
    )


def turn(row: str | None) -> None:
    """Show that row; None: the list."""
    st.session_state["row"] = row or ""
