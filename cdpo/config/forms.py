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
        for index, entry in enumerate(entries):
            here: YamlPath = (*base, index)
            if isinstance(entry, dict):
                found.append((here, _with_defaults(document, entry, here, defaults)))
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


def _with_defaults(
    document: Document, entry: dict[str, Any], here: YamlPath, defaults: dict[str, Any]
) -> dict[str, Any]:
    """`entry` over `defaults`; mappings (a stage's parameters) are merged key by key. Places go with the values."""
    merged = dict(entry)
    for key, value in defaults.items():
        if key not in entry:
            merged[key] = value
            _copy_places(document, ("defaults", key), (*here, key))
        elif isinstance(value, dict) and isinstance(entry[key], dict):
            merged[key] = {**entry[key]}
            for inner, item in value.items():
                if inner not in entry[key]:
                    merged[key][inner] = item
                    _copy_places(document, ("defaults", key, inner), (*here, key, inner))
    return merged


def _copy_places(document: Document, source: YamlPath, target: YamlPath) -> None:
    for places in (document.values, document.keys):
        found = {path: place for path, place in places.items() if path[: len(source)] == source}
        for path, place in found.items():
            places[(*target, *path[len(source) :])] = place
