"""Which prompt is shown: filters, search and order, a paged list, and steps forth and back."""

import pandas as pd
import streamlit as st

from cdpo.report import by_prompt
from cdpo.report.by_prompt import FILTERS, ORDERS
from cdpo.report.overview import words as metric_words
from cdpo.report.reading import RunScores
from cdpo.viewer import compare_choices, compare_data, look, responses

#: rows of the list on one page
PAGE = 8


def choose(
    table: pd.DataFrame, runs: list[RunScores], metric: str | None, words: dict[str, str], under: str
) -> str | None:
    """The prompt_id of the prompt to show; None where the filter leaves none. `under` which seed, or nothing."""
    counts = {name: len(table) if column == "all" else int(table[column].sum()) for name, column in FILTERS.items()}
    left, middle, right = st.columns([3, 4, 3], vertical_alignment="bottom")
    show = left.selectbox("Show", list(FILTERS), key="only", bind="query-params", on_change=_first)
    find = middle.text_input(
        "Find in prompts and responses", key="text", bind="query-params", on_change=_first, placeholder="any text"
    )
    order = right.selectbox("Order", list(ORDERS), key="order", bind="query-params", on_change=_first)
    told = " · ".join(f"{name} {count:,}" for name, count in counts.items())
    reward = by_prompt.reward_of(runs[0], runs[1], metric)
    by = f"; the reward is the {metric_words(reward)}" if reward and table["judged"].notna().any() else ""
    st.caption(responses.escaped(f"{told}{',' if under else ''}{under}{by}"))
    ids = _chosen(table, runs, FILTERS[show], find, order)
    if not ids:
        look.empty("No such prompt", "No prompt is left by this filter and search: choose others above.")
        return None
    asked = st.session_state["prompt"] if "prompt" in st.session_state else st.query_params.get("prompt")
    here = asked or ids[0]
    if here not in table.index:
        if asked:
            told = "Neither run answered the prompt of this address; the first one is shown."
            st.warning(told, icon=":material/search_off:")
        here = ids[0]
    at = ids.index(here) if here in ids else None
    _list(table, ids, at, words)
    back, forth, place, name = st.columns([2, 2, 5, 4], vertical_alignment="center")
    before = ids[at - 1] if at else None
    after = ids[0] if at is None else ids[at + 1] if at + 1 < len(ids) else None
    back.button(
        "Previous", icon=":material/arrow_back:", disabled=before is None, on_click=_go, args=(before,), width="stretch"
    )
    forth.button(
        "Next", icon=":material/arrow_forward:", disabled=after is None, on_click=_go, args=(after,), width="stretch"
    )
    place.markdown(f"prompt **{at + 1:,}** of {len(ids):,}" if at is not None else "not among those of this filter")
    if "prompt" not in st.session_state and not asked:
        compare_choices.put_in_address(prompt=here)
    elif not asked:
        st.session_state["prompt"] = here
    name.text_input("Prompt", key="prompt", bind="query-params", label_visibility="collapsed", help="its id")
    return here


def _chosen(table: pd.DataFrame, runs: list[RunScores], column: str, find: str, order: str) -> list[str]:
    kept = table if column == "all" else table[table[column]]
    if find:
        kept = kept[kept.index.isin(compare_data.holding(compare_data.files(runs), find, runs))]
    by = ORDERS[order]
    if by is None:
        return [str(each) for each in kept.index]
    values = kept.get(by[0])
    if values is None:
        values = compare_data.different(compare_data.files(runs), runs).reindex(kept.index)
    ranked = values.dropna().sort_values(ascending=by[1], kind="stable")
    return [*map(str, ranked.index), *map(str, values.index[values.isna()])]


def _list(table: pd.DataFrame, ids: list[str], at: int | None, words: dict[str, str]) -> None:
    """One page of the prompts, that with the chosen one unless another is asked for; a click on a row chooses it."""
    pages = -(-len(ids) // PAGE)
    turned = st.session_state.get("page turned")
    page = min(turned, pages - 1) if turned is not None else (at or 0) // PAGE
    rows = ids[page * PAGE : (page + 1) * PAGE]
    shown = table.loc[rows]
    says = {1.0: "B", -1.0: "A", 0.0: "neither"}
    frame = pd.DataFrame(
        {
            "": ["▸" if at is not None and each == ids[at] else "" for each in rows],
            "prompt": [responses.label(words.get(each, each), 110) for each in rows],
            "A": shown["a"].to_numpy(),
            "B": shown["b"].to_numpy(),
            "B − A": shown["difference"].to_numpy(),
            "judge": [says.get(each, "") for each in shown["judged"]],
            "tokens A": shown["tokens_a"].to_numpy(),
            "tokens B": shown["tokens_b"].to_numpy(),
        }
    )
    if shown["judged"].isna().all() and table["judged"].isna().all():
        frame = frame.drop(columns="judge")
    shapes = {name: st.column_config.NumberColumn(format="%.3f", width="small") for name in ("A", "B", "B − A")}
    shapes |= {name: st.column_config.NumberColumn(format="%d", width="small") for name in ("tokens A", "tokens B")}
    shapes |= {"": st.column_config.TextColumn(width=20), "prompt": st.column_config.TextColumn(width="large")}
    if "judge" in frame:
        shapes["judge"] = st.column_config.TextColumn("judge says", width="small")
    key = f"prompts {page} {hash((tuple(rows), at))}"
    st.dataframe(
        frame,
        hide_index=True,
        column_config=shapes,
        key=key,
        on_select=lambda: _picked(key, rows),
        selection_mode="single-row",
    )
    if pages > 1:
        first, back, told, forth = st.columns([8, 1, 3, 1], vertical_alignment="center")
        first.caption("Click at the left of a row to see its responses.")
        back.button(
            "", icon=":material/chevron_left:", key="page back", disabled=page == 0, on_click=_turn, args=(page - 1,)
        )
        told.caption(f"rows {page * PAGE + 1:,} to {page * PAGE + len(rows):,} of {len(ids):,}")
        forth.button(
            "",
            icon=":material/chevron_right:",
            key="page on",
            disabled=page + 1 == pages,
            on_click=_turn,
            args=(page + 1,),
        )


def _picked(key: str, rows: list[str]) -> None:
    chosen = st.session_state[key]["selection"]["rows"]
    if chosen:
        _go(rows[chosen[0]])


def _go(prompt: str | None) -> None:
    st.session_state["prompt"] = prompt or ""
    st.session_state.pop("page turned", None)


def _first() -> None:
    """Another filter, search or order shows its first prompt."""
    _go(None)


def _turn(page: int) -> None:
    st.session_state["page turned"] = page
