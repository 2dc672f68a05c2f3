"""What the page Compare reads, kept between clicks. Labels are `tag/name`."""

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from cdpo.report import by_prompt, side_by_side, texts
from cdpo.report.judged import compare_judged
from cdpo.report.matrix import compare_all
from cdpo.report.reading import RunScores
from cdpo.report.side_by_side import SIDE_BY_SIDE, Beside
from cdpo.store import Store
from cdpo.viewer import data

# what is kept is not changed by whoever gets it: it is handed out as it is, not as a copy


@st.cache_resource(ttl=data.FRESH, max_entries=4, show_spinner=False)
def listed(root: str, tags: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """`cdpo.report.side_by_side.listed` of the runs under `tags`; () for all."""
    return side_by_side.listed([ref for ref in data.refs(root) if not tags or ref["tag"] in tags])


@st.cache_resource(ttl=data.FRESH, max_entries=4, show_spinner="Reading two runs ...")
def beside(root: str, labels: tuple[str, ...], _known: dict[str, list[dict[str, Any]]]) -> Beside:
    """The runs or configurations of these labels, in their order."""
    return side_by_side.read(_store(root), {label: _known[label] for label in labels})


@st.cache_resource(ttl=60, max_entries=4, show_spinner="Comparing prompt by prompt ...")
def prompts(root: str, steps: tuple[str, ...], metric: str | None, _beside: Beside, _seed: int) -> pd.DataFrame:
    """`cdpo.report.by_prompt.by_prompt` of the first two groups; `steps` name all that is read."""
    a, b = (by_prompt.of_seed(group, _seed) for group in _beside.groups[:2])
    return by_prompt.by_prompt(_store(root), a, b, metric, _beside.matches)


@st.cache_resource(ttl=60, max_entries=4, show_spinner=False)
def openings(file: str, _run: RunScores) -> dict[str, str]:
    """How each prompt that the run answered begins; `file` is that of its responses."""
    return texts.openings(_run)


@st.cache_resource(ttl=60, max_entries=8, show_spinner="Searching ...")
def holding(files: tuple[str, ...], text: str, _runs: list[RunScores]) -> set[str]:
    """The prompts where the text stands, in a prompt or a response."""
    return texts.holding(_runs, text)


@st.cache_resource(ttl=60, max_entries=4, show_spinner="Comparing words ...")
def different(files: tuple[str, ...], _runs: list[RunScores]) -> pd.Series:
    """How different the words of both responses are, by prompt."""
    return texts.different(*_runs)


@st.cache_resource(ttl=data.FRESH, max_entries=4, show_spinner=False)
def configurations(root: str, tags: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """`cdpo.report.side_by_side.configurations` of the runs under `tags`; () for all."""
    return side_by_side.configurations([ref for ref in data.refs(root) if not tags or ref["tag"] in tags])


@st.cache_data(ttl=60, max_entries=8, show_spinner="Comparing all with all ...")
def matrix(root: str, by: str, names: tuple[str, ...], tag: str | None) -> dict[str, Any]:
    """Every pair of the configurations `names`: by a metric, or by `judge NAME` who saw both. Raises CdpoError."""
    if by.startswith(SIDE_BY_SIDE):
        return compare_judged(root, by.removeprefix(SIDE_BY_SIDE), names, tag)
    return compare_all(root, by, names, tag)


def files(runs: list[RunScores]) -> tuple[str, ...]:
    """What names the responses of runs: their files never change."""
    return tuple(str(by_prompt.answers(run)) for run in runs)


def _store(root: str) -> Store:
    return Store(Path(root))
