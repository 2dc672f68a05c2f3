"""How far reviewers agree, and what is exported of what they decided."""

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from cdpo.config.hub import HubSettings, read_hub
from cdpo.errors import CdpoError
from cdpo.review import acts, export, publish, rows, summary
from cdpo.review.sources import Source
from cdpo.stats.intervals import Estimate
from cdpo.store import Store
from cdpo.viewer import datasets_data as reading
from cdpo.viewer import look
from cdpo.viewer.datasets_filters import named
from cdpo.viewer.responses import escaped

#: of a split: its rows, and their numbers
Numbers = Callable[[str], tuple[rows.Overview, Mapping[str, np.ndarray]]]


def agreement(source: Source, reviews: acts.Reviews, numbers: Numbers) -> None:
    done = summary.progress(reviews)
    if not done.rows:
        look.empty("Nobody reviewed this yet.", "Choose a row under Rows, write your name, and vote.")
        return
    decided = summary.decided(reviews)
    found = summary.agreement(reviews)
    first, second, third, fourth = st.columns(4)
    first.metric("Rows reviewed", f"{done.rows:,}", border=True)
    second.metric("Flagged", f"{done.flagged:,}", border=True)
    if found is None:
        third.metric("Reviewers agree", "–", border=True, help="No row has votes of two reviewers yet.")
        fourth.metric("Krippendorff's alpha", "–", border=True, help="No row has votes of two reviewers yet.")
    else:
        third.metric("Reviewers agree", f"{100 * found.percent.mean:.0f} %", border=True, help=_words(found.percent))
        value = "–" if found.alpha is None else f"{found.alpha:.2f}"
        about = "Agreement beyond chance: 1 is perfect, 0 is that of chance. Not defined where all votes are the same."
        fourth.metric("Krippendorff's alpha", value, border=True, help=about)
        st.caption(
            f"Agreement is over {found.percent.n:,} rows with votes of two reviewers or more: {_words(found.percent)}."
        )
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Who voted**")
        table = pd.DataFrame({"reviewer": list(done.voted), "votes": list(done.voted.values())})
        st.dataframe(table, hide_index=True, width="stretch")
    with right:
        st.markdown("**The majority of reviewers, and others**")
        compared = _compared(source, decided, numbers)
        if compared:
            st.dataframe(pd.DataFrame(compared), hide_index=True, width="stretch")
        else:
            st.caption("No row has a majority that could be compared with a label or a score.")


def _compared(source: Source, decided: Mapping[acts.Place, str], numbers: Numbers) -> list[dict[str, str | int]]:
    lines: list[dict[str, str | int]] = []
    if not source.single:
        labels = summary.with_labels(decided)
        if labels is not None:
            lines.append({"with": "the dataset's labels", "agree": _words(labels), "rows": labels.n})
    for name, values in _values(decided, numbers).items():
        if source.single and _is_score(name):
            found = summary.ranked(decided, values)
            if found is not None:
                share, good, bad = found
                words = f"a good one is above a bad one in {100 * share:.0f} %"
                lines.append({"with": named(name), "agree": words, "rows": good + bad})
        elif not source.single and (name == "bt_prob" or rows.margin_names({name: values})):
            middle = 0.5 if name == "bt_prob" else 0.0
            margins = summary.with_margins(decided, {place: value - middle for place, value in values.items()})
            if margins is not None:
                lines.append({"with": named(name), "agree": _words(margins), "rows": margins.n})
    return lines


def _is_score(name: str) -> bool:
    """Whether it is a reward's or a judge's of the response, and not of the dataset's own answer."""
    parts = name.split("/")
    return len(parts) > 1 and (parts[-1] != "chosen" or "winrate" in parts)


def _values(decided: Mapping[acts.Place, str], numbers: Numbers) -> dict[str, dict[acts.Place, float]]:
    """The numbers of the decided rows, by name."""
    found: dict[str, dict[acts.Place, float]] = {}
    for split in {place.split for place in decided}:
        try:
            view, measures = numbers(split)
        except KeyError:  # the data was made again without that split
            continue
        there = rows.positions(view, [place.row for place in decided if place.split == split])
        for place in decided:
            if place.split == split and place.row in there:
                for name, values in measures.items():
                    value = float(values[there[place.row]])
                    if np.isfinite(value):
                        found.setdefault(name, {})[place] = value
    return found


def _words(share: Estimate) -> str:
    return publish.in_words(share)


# -- export -----------------------------------------------------------------------------------------------------------


def exports(store: Store, source: Source, reviews: acts.Reviews, split: str) -> None:
    if not reviews:
        look.empty("There is nothing to export.", "Nobody reviewed this yet: choose a row under Rows, and vote.")
        return
    what = (
        "Responses with the majority's vote, as `prompt`, `completion`, `label` (TRL's unpaired preferences)."
        if source.single
        else "Pairs as most of their reviewers prefer them, as `prompt`, `chosen`, `rejected` (TRL's preference data)."
    )
    st.write(what)
    keep = st.toggle("Keep flagged rows", key="flagged", bind="query-params")
    try:
        made = reading.exported(store, source, keep)
    except CdpoError as error:
        st.error(escaped(str(error)))
        return
    st.caption(escaped(f"All splits: {made.told()}."))
    here = made.splits.get(split, [])
    if not made.rows:
        look.empty(
            "No row is decided yet.", "A row is exported once more than half of its reviewers prefer one response."
        )
        return
    first, second, _ = st.columns([1, 1, 2])
    name = f"review-{split}"
    for column, form in zip((first, second), export.FORMS, strict=True):
        column.download_button(
            f"{split}{form}: {len(here):,} rows",
            export.as_bytes(here, form) if here else b"",
            f"{name}{form}",
            icon=":material/download:",
            disabled=not here,
            key=f"download_{form[1:]}",
            on_click="ignore",
            width="stretch",
        )
    if here and not source.single:
        st.caption("In a tasks file of cdpo, and as it is for TRL's DPOTrainer:")
        st.code(f"dataset: [./{name}.jsonl]", language="yaml")
    _hub(store, source, reviews, made)


def _hub(store: Store, source: Source, reviews: acts.Reviews, made: export.Exported) -> None:
    st.divider()
    configs = store.root.parent / "configs"
    try:
        settings = read_hub(configs)
        where = _where(settings, store)
    except CdpoError as error:
        st.error(escaped(str(error)))
        return
    st.markdown("**Publish it as a dataset**")
    st.write(
        f"All splits, every vote and note, and a card that says who voted and how far they agree. It goes to {where}."
    )
    refused = acts.refusal(store) or _reachable()
    if st.button("Publish", icon=":material/cloud_upload:", key="publish", disabled=refused is not None, help=refused):
        notes: list[str] = []
        try:
            with st.spinner("Publishing ..."):
                done = publish.push(store, settings, source, reviews, made, notes.append)
        except (CdpoError, OSError) as error:
            st.error(escaped(str(error)))
            return
        st.success(f"Published as {escaped(done.repo)}.")
        st.code(done.url, language=None, wrap_lines=True)


def _reachable() -> str | None:
    """Why whoever looks at this may not publish under this machine's name; None where nobody else can look."""
    address = st.get_option("server.address") or "0.0.0.0"
    try:
        alone = ip_address(address).is_loopback
    except ValueError:
        alone = address == "localhost"
    if alone:
        return None
    return "This viewer can be reached from elsewhere: `cdpo review push` publishes, on the machine of the store."


def _where(settings: HubSettings, store: Store) -> str:
    if settings.where == "local":
        return f"the hub in the folder `{Path(settings.root_of(store.root))}`"
    seen = "a private dataset" if settings.private else "a **public** dataset"
    return f"{seen} of {escaped(settings.owner or 'the owner of the token')} on the Hugging Face Hub"
