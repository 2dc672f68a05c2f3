"""What the page Datasets reads, kept between reruns: numbers of all rows, texts of those that are shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from cdpo.review import acts, export, rows, scores, sources
from cdpo.review.rendering import Renderer
from cdpo.store import Store
from cdpo.viewer import data

#: datasets whose numbers are kept: a million rows are some 100 MB
KEPT = 3


@st.cache_data(ttl=data.FRESH, show_spinner=False, max_entries=4)
def listed(root: str, tags: tuple[str, ...]) -> dict[str, sources.Source]:
    """What can be reviewed, by label; of runs only those under `tags` (() for all)."""
    refs = [ref for ref in data.refs(root) if not tags or ref["tag"] in tags]
    return sources.sources(Store(Path(root)), refs)


def stamp(path: Path) -> int:
    """What tells a file from what stood at its place before: a step that was made again."""
    return path.stat().st_mtime_ns


@st.cache_resource(show_spinner="Measuring the rows ...", max_entries=KEPT)
def overview(path: str, when: int) -> rows.Overview:
    return rows.overview(Path(path))


@st.cache_data(ttl=data.FRESH, show_spinner=False, max_entries=KEPT)
def scored(root: str, label: str, tags: tuple[str, ...], path: str, when: int) -> dict[str, np.ndarray]:
    """Rewards and verdicts of the responses of the run `label`; {} of anything else."""
    source = listed(root, tags)[label]
    if source.ref is None:
        return {}
    return scores.scores_of(Store(Path(root)), source.ref, source.key, overview(path, when))


@st.cache_data(show_spinner="Reading rows ...", max_entries=32)
def texts(path: str, when: int, places: tuple[int, ...]) -> list[dict[str, Any]]:
    return rows.rows_at(Path(path), places)


@st.cache_data(show_spinner="Searching ...", max_entries=8)
def hits(path: str, when: int, text: str) -> np.ndarray:
    return rows.search(Path(path), text)


def reviews(store: Store, key: str) -> acts.Reviews:
    """As they stand now: the files are read again when one of them grew."""
    found: acts.Reviews = _reviews(str(store.root), key, _sizes(store, key))
    return found


def exported(store: Store, source: sources.Source, keep_flagged: bool) -> export.Exported:
    """What reviewers decided by now."""
    files = tuple((str(path), stamp(path)) for path in source.splits().values())
    found: export.Exported = _exported(str(store.root), source, files, _sizes(store, source.key), keep_flagged)
    return found


def _sizes(store: Store, key: str) -> tuple[tuple[str, int], ...]:
    return tuple((str(path), path.stat().st_size) for path in acts.files(store, key))


@st.cache_data(show_spinner="Gathering the rows ...", max_entries=2)
def _exported(
    root: str,
    _source: sources.Source,
    files: tuple[tuple[str, int], ...],
    sizes: tuple[tuple[str, int], ...],
    keep_flagged: bool,
) -> export.Exported:
    said = acts.read_reviews(Store(Path(root)), _source.key)
    return export.export(_source, said, keep_flagged=keep_flagged)


@st.cache_data(show_spinner=False, max_entries=4)
def _reviews(root: str, key: str, sizes: tuple[tuple[str, int], ...]) -> acts.Reviews:
    return acts.read_reviews(Store(Path(root)), key)


@st.cache_resource(show_spinner=False)
def renderer() -> Renderer:
    """One process for all who look."""
    return Renderer()


def by_row(found: acts.Reviews, split: str) -> Mapping[str, list[dict[str, acts.Review]]]:
    """What is said of the rows of a split, by row id; a row whose text changed has several entries."""
    of: dict[str, list[dict[str, acts.Review]]] = {}
    for place, said in found.items():
        if place.split == split:
            of.setdefault(place.row, []).append(said)
    return of


def counted(votes: Sequence[str]) -> str:
    """`chosen 2, tie 1`"""
    return ", ".join(f"{vote} {votes.count(vote)}" for vote in dict.fromkeys(votes))
