"""Which rows are shown, and in which order: by ranges of their numbers, by text, by what reviewers said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st

from cdpo.review import acts, rows
from cdpo.viewer import datasets_data as reading
from cdpo.viewer.responses import escaped

BINS = 32
#: of a histogram, in pixels
HEIGHT = 70
#: in a row of the page
COLUMNS = 3
_NAMES = {
    "prompt_chars": "prompt length",
    "chosen_chars": "chosen length",
    "rejected_chars": "rejected length",
    "response_chars": "response length",
    "prompt_tokens": "prompt tokens",
    "response_tokens": "response tokens",
}
AGAINST, DISAGREE, FLAGGED, MINE = "scores prefer the other", "reviewers disagree", "flagged", "not yet by me"
STORED = "as stored"


@dataclass(frozen=True)
class Shown:
    #: of all rows, in the chosen order
    ranking: np.ndarray
    #: those that fit, in the same order
    fitting: np.ndarray
    #: the numbers that were chosen
    by: tuple[str, ...]

    def beside(self, at: int, step: int) -> int | None:
        """The next fitting row (`step` 1) or the one before (-1) as seen from the row `at`, which need not fit."""
        rank = np.empty(len(self.ranking), dtype=np.int64)
        rank[self.ranking] = np.arange(len(self.ranking))
        places = rank[self.fitting]
        if step > 0:
            after = int(np.searchsorted(places, rank[at], "right"))
            return int(self.fitting[after]) if after < len(places) else None
        before = int(np.searchsorted(places, rank[at], "left")) - 1
        return int(self.fitting[before]) if before >= 0 else None


def named(measure: str) -> str:
    """A measure as people call it."""
    return _NAMES.get(measure, measure)


def whole(measure: str) -> bool:
    """Whether it counts something."""
    return measure.endswith(("_chars", "_tokens"))


def first_measures(measures: Mapping[str, np.ndarray]) -> list[str]:
    """What most want to see: the length of the response, and the number that says most about the row."""
    length = next((name for name in ("chosen_chars", "response_chars", "prompt_chars") if name in measures), None)
    telling = next(
        (
            name
            for name in (
                "bt_prob",
                *rows.margin_names(measures),
                *(name for name in measures if name.endswith("/mean")),
            )
            if name in measures
        ),
        None,
    )
    return [name for name in (length, telling) if name is not None]


def choose(
    path: str,
    when: int,
    measures: Mapping[str, np.ndarray],
    ids: rows.Overview,
    said: Mapping[str, Sequence[Mapping[str, acts.Review]]],
    reviewer: str,
    opened: bool,
) -> Shown:
    """The controls; `measures` are all numbers of the rows, `said` what reviewers said, by row id."""
    mask = np.ones(len(ids), bool)
    with st.expander("Filters and histograms", icon=":material/filter_alt:", expanded=opened):
        left, middle, right = st.columns([2, 2, 1], vertical_alignment="bottom")
        text = left.text_input(
            "Text", key="words", bind="query-params", placeholder="in the prompt or a response", max_chars=200
        )
        by = middle.multiselect(
            "Numbers", list(measures), first_measures(measures), format_func=named, key="numbers", bind="query-params"
        )
        orders = [STORED, *(f"{how} {named(name)}" for name in measures for how in ("highest", "lowest"))]
        order = right.selectbox("Order", orders, key="sort", bind="query-params")
        only = st.pills(
            "Only rows where ...",
            _marks(measures, reviewer),
            selection_mode="multi",
            key="where",
            bind="query-params",
            label_visibility="collapsed",
        )
        columns = st.columns(COLUMNS)
        for at, name in enumerate(by):
            with columns[at % COLUMNS]:
                mask &= _within(name, measures[name])
        if text:
            found = reading.hits(path, when, text)
            mask[: len(found)] &= found
            mask[len(found) :] = False
            if len(found) < len(mask):
                st.caption(f"The text was looked for in the first {len(found):,} of {len(mask):,} rows.")
    for mark in only or ():
        mask &= _marked(mark, measures, ids, said, reviewer)
    ranking = _ranking(order, measures, len(ids))
    return Shown(ranking, ranking[mask[ranking]], tuple(by))


def _marks(measures: Mapping[str, np.ndarray], reviewer: str) -> list[str]:
    scored = [AGAINST] if rows.against(measures) is not None else []
    return [*scored, DISAGREE, FLAGGED, *([MINE] if reviewer else [])]


def _marked(
    mark: str,
    measures: Mapping[str, np.ndarray],
    ids: rows.Overview,
    said: Mapping[str, Sequence[Mapping[str, acts.Review]]],
    reviewer: str,
) -> np.ndarray:
    if mark == AGAINST:
        found = rows.against(measures)
        return found if found is not None else np.ones(len(ids), bool)
    if mark == DISAGREE:
        wanted = [row for row, each in said.items() if any(len({*acts.votes(dict(of))}) > 1 for of in each)]
    elif mark == FLAGGED:
        wanted = [row for row, each in said.items() if any(review.flag for of in each for review in of.values())]
    else:
        wanted = [row for row, each in said.items() if any(of.get(reviewer, acts.Review()).vote for of in each)]
    found = np.zeros(len(ids), bool)
    found[list(rows.positions(ids, wanted).values())] = True
    return ~found if mark == MINE else found


def _ranking(order: str, measures: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    for name, values in measures.items():
        if order in (f"highest {named(name)}", f"lowest {named(name)}"):
            keys = -values if order.startswith("highest") else values
            return np.argsort(np.where(np.isnan(values), np.inf, keys), kind="stable")
    return np.arange(count)


def _within(name: str, values: np.ndarray) -> np.ndarray:
    """A histogram over a slider: which rows are between its ends; all, with those that have no number, at first."""
    finite = values[np.isfinite(values)]
    label, key = escaped(named(name)), f"range_{name}"
    if not finite.size or finite.min() == finite.max():
        st.caption(f"{label}: {'no row has one' if not finite.size else f'{finite[0]:g} in every row'}")
        return np.ones(len(values), bool)
    low, high, step = _ends(finite)
    whole = bool(step == int(step))
    kind = int if whole else float
    ends = (kind(low), kind(high))
    now = _chosen(key, ends)
    st.caption(label)
    st.altair_chart(_histogram(finite, low, high, now), width="stretch", height=HEIGHT, key=f"histogram_{name}")
    chosen = st.slider(
        label,
        *ends,
        ends,
        step=kind(step),
        format=None if whole else f"%.{max(0, -int(np.floor(np.log10(step))))}f",
        key=key,
        bind="query-params",
        label_visibility="collapsed",
    )
    if tuple(chosen) == ends:
        return np.ones(len(values), bool)
    with np.errstate(invalid="ignore"):
        inside: np.ndarray = (values >= chosen[0] - step / 1e6) & (values <= chosen[1] + step / 1e6)
    return inside


def _ends(finite: np.ndarray) -> tuple[float, float, float]:
    """The slider's ends around all values, and its step: 1 for whole numbers, else some hundredth of the range."""
    if np.array_equal(finite, np.round(finite)):
        return float(finite.min()), float(finite.max()), 1.0
    step = float(10.0 ** np.floor(np.log10((finite.max() - finite.min()) / 100)))
    digits = max(0, -int(np.floor(np.log10(step))))
    return (
        round(float(np.floor(finite.min() / step) * step), digits),
        round(float(np.ceil(finite.max() / step) * step), digits),
        step,
    )


def _chosen(key: str, ends: tuple[float, float]) -> tuple[float, float]:
    """What the slider says, brought between its ends: it may be left from another dataset."""
    given = st.session_state.get(key, ends)
    low, high = (type(ends[0])(min(max(each, ends[0]), ends[1])) for each in given)
    if key in st.session_state and (low, high) != tuple(given):
        st.session_state[key] = (low, high)
    return low, high


def _histogram(finite: np.ndarray, low: float, high: float, now: tuple[float, float]) -> alt.Chart:
    counts, edges = np.histogram(finite, bins=BINS, range=(low, high))
    middle = (edges[:-1] + edges[1:]) / 2
    inside = (middle >= now[0]) & (middle <= now[1])
    table = pd.DataFrame({"from": edges[:-1], "to": edges[1:], "rows": counts, "inside": inside})
    return (
        alt.Chart(table)
        .mark_bar(binSpacing=1)
        .encode(
            x=alt.X("from:Q", bin="binned", title=None, axis=None, scale=alt.Scale(domain=(low, high), nice=False)),
            x2="to:Q",
            y=alt.Y("rows:Q", title=None, axis=None),
            color=alt.condition("datum.inside", alt.value("#4c8bf5"), alt.value("#9aa0a680")),
            tooltip=[alt.Tooltip("from:Q", format=".4~g"), alt.Tooltip("to:Q", format=".4~g"), "rows:Q"],
        )
        .properties(height=HEIGHT, padding=0)
        .configure_view(stroke=None)
    )
