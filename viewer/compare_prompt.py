"""One prompt: what was asked, what each run answered, what rewards and judges said of it."""

import html
from typing import Any

import streamlit as st

from cdpo.report import by_prompt, texts
from cdpo.report.reading import Match, RunScores
from cdpo.report.tables import number
from cdpo.report.words import MOST_WORDS, difference
from cdpo.store import Store
from cdpo.viewer import responses
from cdpo.viewer.compare_choices import chip

LETTERS = "ABCDE"
#: a judge's reason that is taller scrolls
REASON = "10rem"


def show(store: Store, runs: list[RunScores], labels: tuple[str, ...], matches: list[Match], prompt_id: str) -> None:
    """The prompt and the responses side by side."""
    rows = [texts.responses(run, prompt_id) for run in runs]
    first = next((each[0] for each in rows if each), None)
    if first is None:
        st.info("Nothing was generated for this prompt: these are scores on the data alone.", icon=":material/notes:")
        return
    sample, marked, with_data = _choices(max(map(len, rows)))
    responses.show_messages(first["prompt"], key=f"prompt {prompt_id}")
    if with_data:
        _data(runs[0], first, prompt_id)
    answers = [next((row for row in each if row["sample"] == sample), None) for each in rows]
    pieces = _marks(answers) if marked else [None] * len(runs)
    for at, column in enumerate(st.columns(len(runs), border=True)):
        with column:
            st.html(f'<div style="overflow-wrap: anywhere">{chip(LETTERS[at], labels[at])}</div>')
            answer = answers[at]
            if answer is None:
                st.caption("did not answer this prompt")
                continue
            _length(answer)
            responses.show_text(answer["response"], key=f"{LETTERS[at]} {prompt_id} {sample}", pieces=pieces[at])
            _scores(texts.scores(runs[at], prompt_id, sample))
            for judge, folder in by_prompt.verdict_steps(store, runs[at]).items():
                names = {"first": "this response", "second": "the chosen one"}
                _verdicts(judge, texts.verdicts(folder, prompt_id, sample), names)
    for at in range(1, len(runs)):
        _side_by_side(store, runs[0], runs[at], LETTERS[at], matches, prompt_id, sample)


def _choices(samples: int) -> tuple[int, bool, bool]:
    """Which response to the prompt, whether differences are marked, and whether the data's responses are shown."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        sample = 1
        if samples > 1:
            sample = (
                st.selectbox(
                    f"Response, of {samples}", list(range(1, samples + 1)), key="answer", bind="query-params", width=160
                )
                or 1
            )
        marked = st.toggle("Mark differences", value=True, key="marks", bind="query-params")
        with_data = st.toggle("The data's own responses", key="reference", bind="query-params")
    return sample - 1, marked, with_data


def _data(run: RunScores, row: dict[str, Any], prompt_id: str) -> None:
    rejected = texts.rejected(run, row["split"], prompt_id)
    for name, messages, column in zip(("chosen", "rejected"), (row["chosen"], rejected), st.columns(2), strict=True):
        with column:
            st.caption(f"the data's {name} response")
            if messages:
                responses.show_messages(messages, key=f"{name} {prompt_id}")
            else:
                st.caption("the data has none")


def _marks(answers: list[dict[str, Any] | None]) -> list[list[responses.Piece] | None]:
    """The texts in pieces: the first as it differs from the second, all others as they differ from the first."""
    found: list[list[responses.Piece] | None] = [None] * len(answers)
    if answers[0] is None:
        return found
    said = False
    for at, answer in enumerate(answers[1:], start=1):
        if answer is None:
            continue
        ours, theirs = answers[0]["response"] or "", answer["response"] or ""
        whole = max(len(ours), len(theirs)) <= responses.MOST_SHOWN
        made = difference(ours, theirs) if whole else None
        if made is None:
            st.caption(
                f"{LETTERS[at]}: no differences are marked in texts of more than {responses.MOST_SHOWN:,} "
                f"characters or {MOST_WORDS:,} words."
            )
            continue
        found[at] = made.b
        if at == 1:
            found[0] = made.a
        said = True
    if said:
        st.html(
            '<small style="opacity: 0.75" class="cdpo-text"><del>only in A</del>&ensp;<ins>not in A</ins>'
            f"{'&ensp;A is marked against B' if len(answers) > 2 else ''}</small>"
        )
    return found


def _length(answer: dict[str, Any]) -> None:
    cut = " · :orange[cut off by the limit of its length]" if answer["finish_reason"] == "length" else ""
    at = "" if answer["temperature"] is None else f" · temperature {answer['temperature']:g}"
    st.caption(f"{answer['response_tokens']:,} tokens{at}{cut}")


def _scores(scores: dict[str, tuple[float | None, float | None]]) -> None:
    """Each reward of the response, and that of the data's chosen one for measure."""
    lines = []
    for name, (own, chosen) in scores.items():
        beside = "" if chosen is None else f' <span style="opacity: 0.6">(the chosen one {number(chosen)})</span>'
        words = name.replace("gold", "gold reward")
        value = "no score" if own is None else number(own)
        lines.append(f"<div>{html.escape(words)} <b>{value}</b>{beside}</div>")
    if lines:
        st.html(f'<div style="font-size: 0.92rem">{"".join(lines)}</div>')


def _side_by_side(
    store: Store, a: RunScores, b: RunScores, letter: str, matches: list[Match], prompt_id: str, sample: int
) -> None:
    for each in by_prompt.judgings(store, a, b, matches):
        if each.side_by_side:
            names = dict(zip(("first", "second") if each.a_first else ("second", "first"), ("A", letter), strict=True))
            with st.container(border=True):
                _verdicts(each.judge, texts.verdicts(each.folders[0], prompt_id, sample), names, f"of A and {letter}")


def _verdicts(judge: str, rows: list[dict[str, Any]], names: dict[str, str], of: str = "") -> None:
    """A judge's verdicts in both orders, each with its reason; `names` are of what the step calls first and second."""
    st.html(f'<div style="font-size: 0.92rem; opacity: 0.75">judge {html.escape(judge)} {html.escape(of)}</div>')
    if not rows:
        st.caption("was not asked about this response")
    said = [_said(row, names) for row in rows]
    if len({who for who in said if who}) > 1:
        st.caption(":orange[not the same in both orders]")
    if any(row["order"] is not None and row["answer"] for row in rows):
        st.caption("In the judge's own words A is what stood first, and B what stood second.")
    places = st.columns(len(rows)) if of and rows else [st.container() for _ in rows]
    for row, who, place in zip(rows, said, places, strict=True):
        order = "" if row["order"] is None else f"{names['second' if row['order'] == 1 else 'first']} first: "
        title = f"{order}{who or 'no verdict'}{_ratings(row)}"
        reason = row["answer"] or row["why"]
        with place:
            if not reason:
                st.caption(
                    responses.escaped(f"{title}; the judge was not asked about two equal texts" if who else title)
                )
                continue
            st.html(f'<b style="font-size: 0.92rem">{html.escape(title)}</b>')
            if row["why"] and row["answer"]:
                st.caption(responses.escaped(responses.label(row["why"], 300)))
            responses.show_text(reason, key=f"why {judge} {of} {row['order']} {row['sample']} {names}", tallest=REASON)


def _said(row: dict[str, Any], names: dict[str, str]) -> str | None:
    """Whom a verdict is for: a verdict is by place, and places change with the order."""
    if row["rating"] is not None and row["verdict"] is None:
        return f"rated {number(row['rating'])}"
    if row["verdict"] is None:
        return None
    if row["verdict"] == "tie":
        return "neither is better"
    other = {"first": "second", "second": "first"}
    place = other[row["verdict"]] if row["order"] == 1 else row["verdict"]
    return f"{names[place]} is better"


def _ratings(row: dict[str, Any]) -> str:
    if row["first"] is None or row["second"] is None:
        return ""
    return f" ({number(row['first'])} and {number(row['second'])}, in this order)"
