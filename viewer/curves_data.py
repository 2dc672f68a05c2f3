"""Which curves there are, and their points: read once for each time that a file was written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from cdpo.report import curves
from cdpo.report.curves import Log, Training
from cdpo.report.groups import grouped
from cdpo.report.overview import SETUP, Row, short_labels
from cdpo.report.reading import RunScores
from cdpo.store import Store
from cdpo.viewer import data

#: files whose points are kept in memory
KEPT = 64


@dataclass(frozen=True)
class Line:
    """What is drawn as one: a configuration or a run, and its trainings, one for each seed."""

    #: as it stands in the URL: `tag/name`
    label: str
    row: Row
    refs: list[dict[str, Any]]
    #: False for one run of several
    whole: bool = True


@st.cache_data(ttl=data.FRESH, show_spinner=False, max_entries=8)
def lines(root: str, tags: tuple[str, ...]) -> list[Line]:
    """Every configuration, then every run that is not one by itself."""
    refs = [ref for ref in data.refs(root) if not tags or ref["tag"] in tags]
    known = {f"{ref['tag']}/{ref['name']}": ref for ref in refs}
    groups = grouped(_run(ref) for ref in refs)
    found = [
        Line(group.label, _row(group.label, group.runs), [known[run.label] for run in group.runs]) for group in groups
    ]
    taken = {line.label for line in found}
    runs = [Line(label, _row(label, [_run(ref)]), [ref], False) for label, ref in known.items() if label not in taken]
    return found + runs


def _run(ref: Mapping[str, Any]) -> RunScores:
    """A run as it is recorded: nothing of its steps is read."""
    names = ("name", "tag", "seed", "method", "model", "dataset", "params", "steps")
    return RunScores(**{name: ref[name] for name in names}, marks=[], state="", recipe=ref.get("recipe", ""))


def _row(label: str, runs: Sequence[RunScores]) -> Row:
    first = runs[0]
    params = {name.removeprefix(f"{first.method}."): value for name, value in first.params.items() if name != "seed"}
    setup = {name: str(getattr(first, name)) for name in SETUP}
    return Row(setup, params, [run.seed for run in runs], "", [], label, [run.label for run in runs])


@st.cache_data(ttl=data.FRESH, show_spinner=False, max_entries=8)
def recent(root: str, tags: tuple[str, ...], most: int) -> list[str]:
    """The labels of the configurations that trained last, newest first."""
    store = Store(Path(root))
    configurations = [line for line in lines(root, tags) if line.whole]
    of = {run: line.label for line in configurations for run in line.row.runs}
    refs = [ref for line in configurations for ref in line.refs]
    written: dict[str, int] = {}
    for each in curves.trainings(store, refs, store.finished(), own=True):
        written[of[each.run]] = max(written.get(of[each.run], 0), curves.changed(each.path)[1])
    return sorted(written, key=lambda label: -written[label])[:most]


def trainings(root: str, chosen: Sequence[Line]) -> list[Training]:
    """All trainings of the chosen lines, each once."""
    refs = {(ref["tag"], ref["name"]): ref for line in chosen for ref in line.refs}
    store = Store(Path(root))
    return curves.trainings(store, refs.values(), store.finished())


def log(training: Training) -> Log:
    """What it logged so far. Raises DamagedFile."""
    found: Log = _log(str(training.path), *curves.changed(training.path))
    return found


@st.cache_resource(max_entries=KEPT, show_spinner=False)
def _log(path: str, size: int, written: int) -> Log:
    return curves.read_log(Path(path))


def labels(chosen: Sequence[Line]) -> list[str]:
    """Short, and no two the same."""
    return short_labels([line.row for line in chosen])
