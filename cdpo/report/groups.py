"""Runs that differ in nothing but their seed, as one; found by their names."""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cdpo.config.canonical import canonical_json
from cdpo.errors import UsageError
from cdpo.report.index import Index
from cdpo.report.reading import Reader, RunScores
from cdpo.store import Store


class Group:
    """Runs that differ in nothing but their seed."""

    def __init__(self, runs: Sequence[RunScores], name: str | None = None) -> None:
        self.runs = sorted(runs, key=lambda run: run.seed)
        self.tag = runs[0].tag
        self.name = name or _common_name(self.runs)
        self.label = f"{self.tag}/{self.name}"
        self.metrics = list(dict.fromkeys(name for run in self.runs for name in run.metrics))

    @property
    def settings(self) -> dict[str, Any]:
        """Every value that the training of its method had; {} where none of its runs has trained."""
        return next((run.settings for run in self.runs if run.settings), {})

    def rename(self, name: str) -> None:
        self.name, self.label = name, f"{self.tag}/{name}"

    def having(self, metric: str) -> list[RunScores]:
        return [run for run in self.runs if metric in run.metrics]


def grouped(runs: Iterable[RunScores]) -> list[Group]:
    """The runs by what they compute but for their seeds: two that only share a name are never averaged."""
    found: dict[str, list[RunScores]] = {}
    for run in runs:
        params = {name: value for name, value in run.params.items() if name != "seed"}
        identity = canonical_json([run.tag, run.method, run.model, run.dataset, params, run.recipe])
        found.setdefault(identity, []).append(run)
    groups = [Group(members) for members in found.values()]
    names = Counter(group.label for group in groups)
    for group in groups:
        if names[group.label] > 1:
            group.rename(f"{group.name}~{group.runs[0].recipe[:6]}")
    return groups


def _common_name(runs: Sequence[RunScores]) -> str:
    """The runs' name without its seed; a name that was cut has none, and then the first one's stands for all."""
    stripped = {re.sub(rf"_s{run.seed}$", "", run.name) for run in runs}
    return stripped.pop() if len(stripped) == 1 else f"{runs[0].name} and {len(runs) - 1} more seeds"


def distinct(
    groups: Sequence[Group], values: Callable[[Group], Any] = lambda group: None
) -> tuple[list[Group], dict[str, str]]:
    """The groups without those that are made of the same policies and responses as an earlier one, under another tag or
    evaluated in another way besides, and have the same `values`; and why each of these is left out."""
    first: dict[Any, Group] = {}
    copies = {}
    for group in groups:
        made = tuple((run.seed, run.policy, run.answers, *([] if run.answers else run.steps)) for run in group.runs)
        same = (made, values(group))
        if same in first:
            copies[group.label] = f"is {first[same].label} once more: the same steps"
        else:
            first[same] = group
    return list(first.values()), copies


def find_two(
    store: str | Path, a: str, b: str, tag: str | None = None, index: Index | None = None
) -> tuple[Group, Group]:
    """Two runs or configurations by their names; a run is a group of itself alone. Raises UsageError."""
    reader = Reader(Store(Path(store)), index)
    runs = [reader.run(ref) for ref in reader.store.read_refs(tag)]
    known = [Group([run], run.name) for run in runs] + [
        group for group in grouped(runs) if group.name not in _names(runs)
    ]
    return find_named(a, known, "run or configuration"), find_named(b, known, "run or configuration")


def find_named(name: str, known: Sequence[Any], what: str) -> Any:
    """The one of `known` (things with `name` and `label`) that is called `name` or `tag/name`."""
    found = [each for each in known if name in (each.name, each.label)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} is the name of several; say which: {', '.join(each.label for each in found)}")
    close = difflib.get_close_matches(name, [*_names(known), *(each.label for each in known)], n=3)
    close = close or sorted(each.label for each in known if name.lower() in each.label.lower())[:3]
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; `cdpo results` lists them"
    raise UsageError(f"there is no {what} called {name!r}{hint}")


def _names(named: Iterable[Any]) -> set[str]:
    return {each.name for each in named}


def seeds_of(runs: Sequence[RunScores]) -> str:
    seeds = ", ".join(str(run.seed) for run in runs)
    return f"seed {seeds}" if len(runs) == 1 else f"seeds {seeds}"


def described(run: RunScores) -> dict[str, Any]:
    """What was computed, but for the seed."""
    return {name: getattr(run, name) for name in ("method", "model", "dataset", "params")}
