"""From experiments to points: every combination that the file asks for, in the order of the file.

`exclude` and `include` follow GitHub Actions: exclude first, by partial match; an include that fits existing points
without overwriting what they have is added to them, any other becomes a point of its own.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cdpo.config.canonical import canonical_json
from cdpo.config.experiment import BASE, REWARD, SEED, Axis, Experiment, Task
from cdpo.config.problems import Problem, YamlPath, suggest
from cdpo.pipeline import pipelines

#: beyond this a matrix is a mistake, and the plan would not fit in memory
MAX_RUNS = 1_000_000
_OWN = ("pipeline", "model", "dataset", SEED)


@dataclass
class Point:
    """One choice of everything: what a run is made from."""

    experiment: Experiment
    method: str
    model: str
    dataset: str
    seed: int
    #: parameters of the method's own training step, as written in the task
    own: dict[str, Any]
    #: parameters of the other pipelines by pipeline, as chosen from their axes
    settings: dict[str, dict[str, Any]]
    #: names of the axes (`beta`, `SFT.learning_rate`) that the run's name and parameters carry
    shown: dict[str, Any]
    #: where the task stands
    path: YamlPath
    model_path: YamlPath
    dataset_path: YamlPath


def expand(experiment: Experiment) -> tuple[list[Point], list[Problem]]:
    """All points of one experiment, or what is wrong with its `exclude` and `include`."""
    size = _size(experiment)
    if size > MAX_RUNS:
        problem = experiment.document.problem(experiment.path, f"the matrix has {size:,} runs; at most {MAX_RUNS:,}")
        return [], [problem]
    points = list(_product(experiment))
    problems: list[Problem] = []
    points = _exclude(experiment, points, problems)
    points = _include(experiment, points, problems)
    return points, problems


def _size(experiment: Experiment) -> int:
    shared = len(experiment.models) * len(experiment.datasets) * len(experiment.seeds)
    total = 0
    for task in experiment.tasks:
        axes = [*task.axes, *(axis for _, axis in _setting_axes(experiment, task))]
        total += shared * math.prod(len(axis.choices) for axis in axes)
    return total


def _setting_axes(experiment: Experiment, task: Task) -> Iterator[tuple[str, Axis]]:
    """The axes of the mappings that concern a task; a task's own keys stand before those of its method's mapping."""
    written = {axis.name for axis in task.axes}
    for pipeline, axes in experiment.settings.items():
        if not _concerns(pipeline, task.method):
            continue
        for axis in axes:
            if pipeline != task.method or axis.name not in written:
                yield pipeline, axis


def _concerns(pipeline: str, method: str) -> bool:
    """Whether a run of `method` can go through `pipeline`: not a training step that comes after it or in its place."""
    known = pipelines()
    if pipeline == method:
        return True
    if method != BASE and known[method].gives != "policy" and known[pipeline].rank > known[method].rank:
        return False  # a reward model is not generated from
    if not known[pipeline].method:
        return True
    if known[pipeline].gives != "policy":
        return method == BASE or known[method].gives == "policy"
    return method != BASE and known[pipeline].rank < known[method].rank


def _product(experiment: Experiment) -> Iterator[Point]:
    for model, dataset, task in itertools.product(experiment.models, experiment.datasets, experiment.tasks):
        settings = list(_setting_axes(experiment, task))
        axes = [axis.choices for axis in task.axes] + [axis.choices for _, axis in settings]
        own_names = [axis.name for axis in task.axes]
        for *chosen, seed in itertools.product(*axes, experiment.seeds):
            own = {name: choice.value for name, choice in zip(own_names, chosen, strict=False)}
            shown = dict(own)
            by_pipeline: dict[str, dict[str, Any]] = {}
            for (pipeline, axis), choice in zip(settings, chosen[len(own_names) :], strict=True):
                by_pipeline.setdefault(pipeline, {})[axis.name] = choice.value
                if len(axis.choices) > 1:
                    shown[axis.name if pipeline == task.method else f"{pipeline}.{axis.name}"] = choice.value
            yield Point(
                experiment=experiment,
                method=task.method,
                model=model.value,
                dataset=dataset.value,
                seed=seed.value,
                own=own,
                settings=by_pipeline,
                shown=shown,
                path=task.path,
                model_path=model.path,
                dataset_path=dataset.path,
            )


def _values(point: Point) -> dict[str, Any]:
    """A point as the flat mapping that `exclude` and `include` are matched with."""
    flat = {"pipeline": point.method, "model": point.model, "dataset": point.dataset, SEED: point.seed, **point.own}
    for pipeline, chosen in point.settings.items():
        for name, value in chosen.items():
            flat[f"{pipeline}.{name}"] = value
            if pipeline == point.method:
                flat.setdefault(name, value)
    return flat


def _flat(selection: dict[str, Any]) -> dict[str, Any]:
    """`{SFT: {learning_rate: 1}}` and `{SFT.learning_rate: 1}` are the same selection."""
    flat: dict[str, Any] = {}
    known = pipelines()
    for key, value in selection.items():
        if key in known and isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


def _same(one: Any, other: Any) -> bool:
    """Equal as settings: 1 and 1.0 are, 1 and true are not."""
    try:
        return canonical_json(one) == canonical_json(other)
    except (TypeError, ValueError):
        return False


def _exclude(experiment: Experiment, points: list[Point], problems: list[Problem]) -> list[Point]:
    document = experiment.document
    for choice in experiment.exclude:
        wanted = _flat(choice.value)
        names = {name for point in points for name in _values(point)} if points else set()
        unknown = [name for name in wanted if name not in names]
        for name in unknown:
            at = (*choice.path, *_written(choice.value, name))
            problems.append(
                document.problem(at, f"no run has this parameter{suggest(name, sorted(names))}", at_key=True)
            )
        if unknown:
            continue
        kept = [point for point in points if not _matches(_values(point), wanted)]
        if len(kept) == len(points):
            problems.append(document.problem(choice.path, "this exclude matches no run"))
        points = kept
    return points


def _matches(values: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(name in values and _same(values[name], value) for name, value in wanted.items())


def _written(selection: dict[str, Any], name: str) -> tuple[str, ...]:
    return (name,) if name in selection else tuple(name.split(".", 1))


def _include(experiment: Experiment, points: list[Point], problems: list[Problem]) -> list[Point]:
    """Keys that a point already has must agree; the others are added. An entry that fits no point is a new point."""
    original = [(point, _values(point)) for point in points]
    for choice in experiment.include:
        wanted = _flat(choice.value)
        fitting = [
            point
            for point, values in original
            if all(name not in values or _same(values[name], value) for name, value in wanted.items())
            and any(name in values for name in wanted)
        ]
        if fitting:
            for point in fitting:
                known = _values(point)
                for name, value in wanted.items():
                    if name not in known:
                        _add(point, name, value, (*choice.path, *_written(choice.value, name)), problems)
        else:
            new = _new_point(experiment, wanted, choice.value, choice.path, problems)
            points = [*points, new] if new else points
    return points


def _add(point: Point, name: str, value: Any, path: YamlPath, problems: list[Problem]) -> None:
    pipeline, _, inner = name.rpartition(".")
    pipeline = pipeline or point.method
    known = pipelines()
    fields = [*known[pipeline].params.model_fields, SEED, REWARD] if pipeline in known else []
    if inner not in fields:
        problem = point.experiment.document.problem(path, f"unknown key{suggest(inner, fields)}", at_key=True)
        if problem not in problems:
            problems.append(problem)
        return
    if pipeline == point.method:
        point.own = {**point.own, inner: value}
    else:
        point.settings = {**point.settings, pipeline: {**point.settings.get(pipeline, {}), inner: value}}
    point.shown = {**point.shown, name: value}


def _new_point(
    experiment: Experiment, wanted: dict[str, Any], written: dict[str, Any], path: YamlPath, problems: list[Problem]
) -> Point | None:
    document = experiment.document
    methods = [BASE, *(name for name, pipeline in pipelines().items() if pipeline.method)]
    method = wanted.get("pipeline")
    before = len(problems)
    if method not in methods:
        why = "fits no run of the matrix, so it is a run of its own and must name its `pipeline`"
        problems.append(document.problem(path, why))
        return None
    seed = wanted.get(SEED, experiment.seeds[0].value)
    if isinstance(seed, bool) or not isinstance(seed, int):
        problems.append(document.problem((*path, SEED), f"a seed is a whole number, not {seed!r}"))
    names: dict[str, str] = {}
    for key, choices in (("model", experiment.models), ("dataset", experiment.datasets)):
        if key not in wanted and len(choices) != 1:
            problems.append(document.problem(path, f"a run of its own must name its `{key}`: there are {len(choices)}"))
        names[key] = wanted.get(key, choices[0].value)
        if not isinstance(names[key], str):
            problems.append(document.problem((*path, key), f"the name of a {key} is text, not {names[key]!r}"))
    if len(problems) > before:
        return None
    task = Task(str(method), [], path)
    settings: dict[str, dict[str, Any]] = {}
    for pipeline, axis in _setting_axes(experiment, task):
        settings.setdefault(pipeline, {})[axis.name] = axis.choices[0].value
    point = Point(
        experiment=experiment,
        method=str(method),
        model=names["model"],
        dataset=names["dataset"],
        seed=seed,
        own={},
        settings=settings,
        shown={},
        path=path,
        model_path=(*path, "model") if "model" in wanted else experiment.models[0].path,
        dataset_path=(*path, "dataset") if "dataset" in wanted else experiment.datasets[0].path,
    )
    for name, value in wanted.items():
        if name not in _OWN:
            if method == BASE and "." not in name:
                at = (*path, *_written(written, name))
                problems.append(document.problem(at, "BASE trains nothing and takes no parameters", at_key=True))
            else:
                _add(point, name, value, (*path, *_written(written, name)), problems)
    return point if len(problems) == before else None
