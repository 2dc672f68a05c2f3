"""Which runs `select` chooses among: those that differ in nothing but the swept values, the split that they answer, and
the seed.
"""

from typing import Any

from cdpo.config.canonical import digest
from cdpo.config.experiment import Experiment
from cdpo.config.problems import Problem, suggest
from cdpo.pipeline import pipelines
from cdpo.plan.graph import PlannedStep
from cdpo.plan.identity import input_identity
from cdpo.plan.points import Point


def sweep(point: Point, steps: list[PlannedStep]) -> dict[str, Any] | None:
    """What results must know of a run of an experiment that has `select`; None for the others.

    {metric, split, over: {NAME: VALUE}, family, of, place}: `family` is equal for runs that a value is chosen among,
    `of` is the split that this run answers (None where it answers nothing), `place` that of its task in the file.
    """
    select = point.experiment.select
    if select is None:
        return None
    written = _written(point)
    swept = {_full(point, name): name for name in select.over if _full(point, name) in written}
    known = pipelines()
    made: list[Any] = []
    roots: list[str] = []
    split = None
    for step in steps:
        if known[step.pipeline].brought:  # whatever it has, the step that takes it has too
            continue
        left_out = {name.rpartition(".")[2] for name in swept if name.rpartition(".")[0] == step.pipeline}
        if known[step.pipeline].gives == "responses":
            split = step.params.get("split")
            left_out.add("split")
        params = {name: value for name, value in step.params.items() if name not in left_out}
        made.append([step.pipeline, step.version, params])
        # a loss of one's own is an input beside its parameter
        own = "loss_plugin" if "loss_type" in left_out else None
        # whatever their role: a full fine-tuning and an adapter stand in different roles of what follows them
        inputs = [given for role, given in step.inputs.items() if "step" not in given and role != own]
        roots += [digest(input_identity(given)) for given in inputs]
    shown = {_full(point, name): value for name, value in point.shown.items()}
    responders = {name for name, pipeline in known.items() if pipeline.gives == "responses"}
    fixed = {
        name: value
        for name, value in shown.items()
        if name not in swept and name not in {f"{each}.split" for each in responders}
    }
    family = digest([point.method, point.model, point.dataset, fixed, made, sorted(set(roots))])[:16]
    return {
        "metric": select.metric,
        "split": select.split,
        "over": {name: written[full] for full, name in swept.items()},
        "family": family,
        "of": split,
        "place": _place(point),
    }


def sweep_problems(experiment: Experiment, points: list[Point]) -> list[Problem]:
    """Names of `select.over` that no run has."""
    if experiment.select is None:
        return []
    there = [_written(point) for point in points]
    names = {name for written in there for name in written}
    known = sorted({*names, *(name.rpartition(".")[2] for point in points for name in _own(point))})
    return [
        experiment.document.problem(path, f"no run has this parameter{suggest(name, known)}")
        for name, path in experiment.select.over.items()
        if not any(_full(point, name) in written for point, written in zip(points, there, strict=True))
    ]


def _full(point: Point, name: str) -> str:
    """`learning_rate` in a run of DPO is `DPO.learning_rate`."""
    return name if "." in name else f"{point.method}.{name}"


def _written(point: Point) -> dict[str, Any]:
    """The values that were written for a run, by `PIPELINE.name`."""
    settings = {f"{owner}.{name}": value for owner, of in point.settings.items() for name, value in of.items()}
    return {**settings, **{f"{point.method}.{name}": value for name, value in point.own.items()}}


def _own(point: Point) -> list[str]:
    return [name for name in _written(point) if name.startswith(f"{point.method}.")]


def _place(point: Point) -> int:
    """The place of a run's task among the tasks; what an `include` brought stands behind them."""
    paths = [task.path for task in point.experiment.tasks]
    return paths.index(point.path) if point.path in paths else len(paths)
