"""The three forms of a tasks file, brought to one: a list of experiments.

One mapping (the released form), a list of such mappings, and `experiments: [...]` with `models:`, `datasets:`,
`rewards:` and `defaults:` beside it.
"""

from typing import Any

from cdpo.config.problems import Problem, YamlPath, suggest
from cdpo.config.tables import Tables, add_datasets, add_models, add_rewards
from cdpo.config.yaml_reader import Document

BESIDE = ("experiments", "models", "datasets", "rewards", "defaults")


def experiment_mappings(
    document: Document, tables: Tables, problems: list[Problem]
) -> list[tuple[YamlPath, dict[str, Any]]]:
    """The experiments of any of the three forms, with `defaults` merged beneath each."""
    top = document.value
    if isinstance(top, dict) and "experiments" in top:
        for key in top:
            if key not in BESIDE:
                problems.append(document.problem((key,), f"unknown key{suggest(key, BESIDE)}", at_key=True))
        for key, add in (("models", add_models), ("datasets", add_datasets), ("rewards", add_rewards)):
            if key in top:
                problems.extend(add(tables, document, (key,), top[key]))
        defaults = top.get("defaults", {})
        if not isinstance(defaults, dict):
            problems.append(document.problem(("defaults",), "should be a mapping"))
            defaults = {}
        entries, base = top["experiments"], ("experiments",)
        if not isinstance(entries, list) or not entries:
            problems.append(document.problem(base, "should be a list of experiments, with at least one"))
            return []
        found = []
        beneath = _Beneath(document, defaults)
        for index, entry in enumerate(entries):
            here: YamlPath = (*base, index)
            if isinstance(entry, dict):
                found.append((here, beneath.put(entry, here)))
            else:
                problems.append(document.problem(here, "should be a mapping"))
        return found
    if isinstance(top, dict):
        return [((), top)]
    if isinstance(top, list) and top:
        wrong = [index for index, entry in enumerate(top) if not isinstance(entry, dict)]
        problems.extend(document.problem((index,), "should be a mapping (one experiment)") for index in wrong)
        return [((index,), entry) for index, entry in enumerate(top) if isinstance(entry, dict)]
    problems.append(
        document.problem((), "should be an experiment (a mapping), a list of them, or `experiments: [...]`")
    )
    return []


class _Beneath:
    """`defaults`, and the places of everything in it, to put beneath each experiment."""

    def __init__(self, document: Document, defaults: dict[str, Any]) -> None:
        self.document, self.defaults = document, defaults
        self.values, self.keys = (
            [(path, place) for path, place in places.items() if path[:1] == ("defaults",) and len(path) > 1]
            for places in (document.values, document.keys)
        )

    def put(self, entry: dict[str, Any], here: YamlPath) -> dict[str, Any]:
        """`entry` over the defaults; mappings (a stage's parameters) are merged key by key. Places go with values."""
        merged = dict(entry)
        taken: set[YamlPath] = set()
        for key, value in self.defaults.items():
            if key not in entry:
                merged[key] = value
                taken.add((key,))
            elif isinstance(value, dict) and isinstance(entry[key], dict):
                new = {inner: item for inner, item in value.items() if inner not in entry[key]}
                merged[key] = {**entry[key], **new}
                taken |= {(key, inner) for inner in new}
        for places, found in ((self.document.values, self.values), (self.document.keys, self.keys)):
            for path, place in found:
                if path[1:2] in taken or path[1:3] in taken:
                    places[(*here, *path[1:])] = place
        return merged
