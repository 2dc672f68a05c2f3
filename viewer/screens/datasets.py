"""Datasets: read the rows of any dataset or of a run's responses, vote on them, export what people decided."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from cdpo.errors import CdpoError
from cdpo.review import acts, rows
from cdpo.review.sources import Source
from cdpo.store import Store
from cdpo.viewer import choices, datasets_filters, datasets_report, datasets_row, look, source
from cdpo.viewer import datasets_data as reading
from cdpo.viewer.datasets_filters import named
from cdpo.viewer.responses import escaped, label

PAGE = 25
#: characters of a text in the table
BEGINNING = 160
_WIDTHS = {
    "my vote": st.column_config.TextColumn(width=90),
    "all votes": st.column_config.TextColumn(width=130),
    "flag ": st.column_config.TextColumn(width=50),
    **{name: st.column_config.TextColumn(width="medium") for name in ("prompt", "chosen", "rejected", "response")},
}
ROWS, AGREEMENT, EXPORT = "Rows", "Agreement", "Export"


def page() -> None:
    look.head(
        "Datasets", "What models learn from and what they answer: read it, vote on it, export what people decided."
    )
    store = source.shown()
    if store is None:
        return
    root, tags = str(store.root), choices.tags()
    known = reading.listed(root, tags)
    if not known:
        look.empty(
            "No data yet.",
            "Datasets appear here as soon as they are prepared, responses when a run has answered.",
            "cdpo prep\ncdpo execute",
        )
        return
    first, second, third, fourth = st.columns([3.4, 1.1, 1.5, 2.4], vertical_alignment="bottom")
    chosen = first.selectbox("Data", list(known), key="data", bind="query-params", on_change=_start_anew)
    splits = known[chosen].splits()
    if not splits:
        look.empty(
            "Its files are gone.", f"{known[chosen].folder} holds no rows any more.", f"cdpo redo {known[chosen].key}"
        )
        return
    split = second.selectbox("Split", list(splits), key="split", bind="query-params", on_change=_start_anew)
    reviewer = _reviewer(third)
    view = fourth.segmented_control(
        "Show",
        [ROWS, AGREEMENT, EXPORT],
        default=ROWS,
        required=True,
        key="section",
        bind="query-params",
        label_visibility="collapsed",
        width="stretch",
    )
    reviews = reading.reviews(store, known[chosen].key)
    if view == AGREEMENT:
        datasets_report.agreement(known[chosen], reviews, lambda of: _numbers(root, chosen, tags, splits[of]))
    elif view == EXPORT:
        datasets_report.exports(store, known[chosen], reviews, split)
    else:
        _rows(store, known[chosen], split, splits[split], reviewer, reviews, tags)


def _start_anew() -> None:
    """Another dataset: its rows have other names and other numbers."""
    st.session_state.update({"row": "", "page": 1, "words": "", "where": [], "sort": datasets_filters.STORED})
    for key in [str(each) for each in st.session_state]:
        if key.startswith("range_"):
            st.session_state[key] = (-np.inf, np.inf)
    # those that the other has too stay chosen, by the URL
    st.session_state.pop("numbers", None)


def _reviewer(column: Any) -> str:
    given = column.text_input(
        "Your name",
        key="reviewer",
        bind="query-params",
        placeholder="to vote",
        max_chars=200,
        help="Votes are kept under it.",
    )
    try:
        return acts.reviewer_name(given) if given else ""
    except CdpoError:
        return ""


def _numbers(root: str, label: str, tags: tuple[str, ...], path: Path) -> tuple[rows.Overview, dict[str, np.ndarray]]:
    when = reading.stamp(path)
    view = reading.overview(str(path), when)
    return view, {**reading.scored(root, label, tags, str(path), when), **view.measures}


def _rows(
    store: Store,
    of: Source,
    split: str,
    path: Path,
    reviewer: str,
    reviews: acts.Reviews,
    tags: tuple[str, ...],
) -> None:
    view, measures = _numbers(str(store.root), of.label, tags, path)
    said = reading.by_row(reviews, split)
    when = reading.stamp(path)
    # before the widget of that name is there, on the first run, only the URL knows
    asked = st.session_state.get("row", st.query_params.get("row"))
    shown = datasets_filters.choose(str(path), when, measures, view, said, reviewer, opened=not asked)
    bar = st.container(horizontal=True, vertical_alignment="bottom")
    with bar:
        st.markdown(_counted(len(shown.fitting), len(view)))
        st.space("stretch")
        row = st.text_input(
            "Row",
            key="row",
            bind="query-params",
            placeholder="go to a row by its id",
            label_visibility="collapsed",
            width=230,
        )
    place = rows.position(view, row) if row else None
    if row and place is None:
        st.warning("There is no row of that id in this split.", icon=":material/search_off:")
    if place is None:
        _table(of, path, when, shown, view, measures, split, reviews, reviewer)
        return
    (content,) = reading.texts(str(path), when, (place,))
    with bar:
        blind = False
        if not rows.is_single(content):
            blind = st.toggle("Hide which is which", key="blind", bind="query-params")
        datasets_row.moved(lambda step: _id(view, shown.beside(place, step)))
        st.button(
            "List", icon=":material/list:", shortcut="Esc", on_click=datasets_row.turn, args=(None,), key="review_list"
        )
    where = acts.Place(split, row, rows.content_hash(content))
    numbers = {name: float(values[place]) for name, values in measures.items()}
    datasets_row.show(datasets_row.At(store, of, content, where, reviewer, numbers, reviews.get(where, {})), blind)


def _counted(fitting: int, count: int) -> str:
    return f"**{fitting:,}** of {count:,} rows fit" if fitting < count else f"**{count:,}** rows"


def _id(view: rows.Overview, place: int | None) -> str | None:
    return None if place is None else str(view.ids[place].as_py())


def _table(
    of: Source,
    path: Path,
    when: int,
    shown: datasets_filters.Shown,
    view: rows.Overview,
    measures: Mapping[str, np.ndarray],
    split: str,
    reviews: acts.Reviews,
    reviewer: str,
) -> None:
    if not len(shown.fitting):
        look.empty("No row fits.", "Widen a range, clear the text, or drop a condition above.")
        return
    pages = -(-len(shown.fitting) // PAGE)
    if st.session_state.get("page", 1) > pages:
        st.session_state["page"] = 1
    spot = st.container()
    number = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
    places = tuple(int(each) for each in shown.fitting[(number - 1) * PAGE : number * PAGE])
    table = _page(reading.texts(str(path), when, places), places, view, measures, split, reviews, reviewer, shown.by)
    ids = [_id(view, place) for place in places]
    spot.dataframe(
        table,
        hide_index=True,
        width="stretch",
        key=f"table_{of.key}",
        on_select=lambda: _open(f"table_{of.key}", ids),
        selection_mode="single-row",
        column_config=_WIDTHS
        | {
            name: st.column_config.NumberColumn(named(name), format="%d" if datasets_filters.whole(name) else "%.4g")
            for name in measures
        },
        height=35 * (len(table) + 1) + 3,
    )


def _open(key: str, ids: list[str | None]) -> None:
    chosen = st.session_state[key]["selection"]["rows"]
    if chosen:
        datasets_row.turn(ids[chosen[0]])


def _page(
    texts: list[dict[str, Any]],
    places: tuple[int, ...],
    view: rows.Overview,
    measures: Mapping[str, np.ndarray],
    split: str,
    reviews: acts.Reviews,
    reviewer: str,
    by: tuple[str, ...],
) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {}
    # what is said of another text than the row has now says nothing of it
    of_row = [
        reviews.get(acts.Place(split, str(_id(view, place)), rows.content_hash(each)), {})
        for place, each in zip(places, texts, strict=True)
    ]
    if any(of_row):
        if reviewer:
            columns["my vote"] = [(each[reviewer].vote or "") if reviewer in each else "" for each in of_row]
        columns["all votes"] = [reading.counted(acts.votes(each)) for each in of_row]
        columns["flag "] = ["⚑" if any(review.flag for review in each.values()) else "" for each in of_row]
    columns |= {name: [float(measures[name][place]) for place in places] for name in by}
    columns["prompt"] = [_begin(each["prompt"]) for each in texts]
    for name in rows.texts_of(texts[0])[1:]:
        if any(each.get(name) for each in texts):
            columns[name] = [_begin(each.get(name)) for each in texts]
    columns |= {name: [float(each[place]) for place in places] for name, each in measures.items() if name not in by}
    return pd.DataFrame(columns)


def _begin(value: Any) -> str:
    """The beginning of a text, or of the last message of several."""
    text = value if isinstance(value, str) else value[-1]["content"] if value else ""
    beginning: str = label(text, BEGINNING)
    return beginning


try:
    page()
except CdpoError as error:
    st.error(escaped(str(error)))
