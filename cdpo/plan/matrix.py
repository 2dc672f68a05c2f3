"""From experiments to points: every combination that the file asks for, in the order of the file.

`exclude` and `include` follow GitHub Actions: exclude first, by partial match; an include is added to every point that
it fits without overwriting what the matrix gave it (what another include added may be overwritten), and where it fits
none it is a point of its own.
"""

from typing import Any

from cdpo.config.canonical import canonical_json
from cdpo.config.experiment import BASE, Choice, Experiment, Task, method_listed
from cdpo.config.problems import Problem, YamlPath, suggest
from cdpo.config.values import SEED, parameter_names, seed_problems, value_problems
from cdpo.pipeline import pipelines
from cdpo.plan.points import Point, concerns, product, setting_axes, size

#: beyond this a matrix is a mistake, and the plan would not fit in memory
MAX_RUNS = 1_000_000
_OWN = ("pipeline", "model", "dataset", SEED)


def expand(experiment: Experiment) -> tuple[list[Point], list[Problem]]:
    """All points of one experiment, or what is wrong with its `exclude` and `include`."""
    runs = size(experiment)
    if runs > MAX_RUNS:
        problem = experiment.document.problem(experiment.path, f"the matrix has {runs:,} runs; at most {MAX_RUNS:,}")
        return [], [problem]
    points = list(product(experiment))
    problems: list[Problem] = []
    points = _exclude(experiment, points, problems)
    points = _include(experiment, points, problems)
    return points, problems


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
    if isinstance(one, str) and isinstance(other, str):
        return one == other
    try:
        return canonical_json(one) == canonical_json(other)
    except (TypeError, ValueError):
        return False


def _exclude(experiment: Experiment, points: list[Point], problems: list[Problem]) -> list[Point]:
    if not experiment.exclude:
        return points
    document = experiment.document
    rows = [(point, _values(point)) for point in points]
    names = sorted({name for _, values in rows for name in values})
    for choice in experiment.exclude:
        wanted = _flat(choice.value)
        unknown = [name for name in wanted if name not in names]
        for name in unknown:
            at = (*choice.path, *_written(choice.value, name))
            problems.append(document.problem(at, f"no run has this parameter{suggest(name, names)}", at_key=True))
        if unknown:
            continue
        kept = [(point, values) for point, values in rows if not _matches(values, wanted)]
        if len(kept) == len(rows):
            problems.append(document.problem(choice.path, "this exclude matches no run"))
        rows = kept
    return [point for point, _ in rows]


def _matches(values: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(name in values and _same(values[name], value) for name, value in wanted.items())


def _written(selection: dict[str, Any], name: str) -> tuple[str, ...]:
    return (name,) if name in selection else tuple(name.split(".", 1))


def _include(experiment: Experiment, points: list[Point], problems: list[Problem]) -> list[Point]:
    """Fitting means: no key of the entry has another value in the matrix, and each can be a parameter of the run."""
    if not experiment.include:
        return points
    original = [(point, _values(point)) for point in points]
    added: list[Point] = []
    for choice in experiment.include:
        wanted = _flat(choice.value)
        if "pipeline" in wanted and wanted["pipeline"] not in _methods():
            hint = suggest(str(wanted["pipeline"]), _methods())
            at = (*choice.path, "pipeline")
            problems.append(experiment.document.problem(at, f"no method is called {wanted['pipeline']!r}{hint}"))
            continue
        agreeing = [
            (point, [name for name in wanted if name not in values])
            for point, values in original
            if all(name not in values or _same(values[name], value) for name, value in wanted.items())
        ]
        fitting = [(point, new) for point, new in agreeing if all(_place(point.method, name) for name in new)]
        if agreeing and not fitting:
            _refuse_unknown(experiment, choice.value, choice.path, agreeing, problems)
        elif fitting:
            new = {name for _, names in fitting for name in names}
            methods = {point.method for point, _ in fitting}
            if _check_values(experiment, {name: wanted[name] for name in new}, methods, choice, problems):
                for point, names in fitting:
                    for name in names:
                        _add(point, name, wanted[name], (*choice.path, *_written(choice.value, name)))
        elif own := _new_point(experiment, wanted, choice, problems):
            added.append(own)
    return [*points, *added]


def _methods() -> list[str]:
    return [BASE, *(name for name, pipeline in pipelines().items() if pipeline.method)]


def _place(method: str, name: str) -> tuple[str, str] | None:
    """The pipeline and parameter that a name of a selection stands for in a run of `method`; None where there is none.

    A bare name is a parameter of the method's own step.
    """
    owner, dot, inner = name.rpartition(".")
    pipeline = pipelines().get(owner if dot else method)
    if (
        pipeline is None
        or pipeline.brought
        or inner not in parameter_names(pipeline)
        or not concerns(pipeline.name, method)
    ):
        return None
    return pipeline.name, inner


def _refuse_unknown(
    experiment: Experiment,
    written: dict[str, Any],
    path: YamlPath,
    agreeing: list[tuple[Point, list[str]]],
    problems: list[Problem],
) -> None:
    """Name the keys that are a parameter of none of the runs that an include agrees with."""
    known: dict[str, None] = {}
    methods = {point.method for point, _ in agreeing}
    for method in sorted(methods):
        known |= dict.fromkeys(parameter_names(pipelines()[method]) if method in pipelines() else [])
    for name in dict.fromkeys(name for _, names in agreeing for name in names):
        if not any(_place(method, name) for method in methods):
            owner, dot, inner = name.rpartition(".")
            there = parameter_names(pipelines()[owner]) if owner in pipelines() else list(known)
            message = "BASE trains nothing and takes no parameters" if methods == {BASE} and not dot else ""
            at = (*path, *_written(written, name))
            message = message or f"unknown key{suggest(inner, there)}"
            problems.append(experiment.document.problem(at, message, at_key=True))
            return
    problems.append(experiment.document.problem(path, "no run that this fits takes all of these parameters"))


def _check_values(
    experiment: Experiment, new: dict[str, Any], methods: set[str], choice: Choice, problems: list[Problem]
) -> bool:
    """Check the values that an include brings, each by itself, as if they stood in the task."""
    found: list[Problem] = []
    for name, value in new.items():
        at = (*choice.path, *_written(choice.value, name))
        for method in methods:
            if place := _place(method, name):
                found.extend(value_problems(experiment.document, pipelines()[place[0]], place[1], value, at))
    problems.extend(dict.fromkeys(found))
    return not found


def _add(point: Point, name: str, value: Any, path: YamlPath) -> None:
    place = _place(point.method, name)
    assert place is not None
    pipeline, inner = place
    if pipeline == point.method:
        name = inner
        point.own = {**point.own, inner: value}
    else:
        point.settings = {**point.settings, pipeline: {**point.settings.get(pipeline, {}), inner: value}}
    point.shown = {**point.shown, name: value}
    point.places = {**point.places, f"{pipeline}.{inner}": path}


def _new_point(experiment: Experiment, wanted: dict[str, Any], choice: Choice, problems: list[Problem]) -> Point | None:
    """An include that fits no run: a run of its own, with the first value of every axis that it does not name."""
    document, path = experiment.document, choice.path
    if "pipeline" not in wanted:
        why = "fits no run of the matrix, so it is a run of its own and must name its `pipeline`"
        problems.append(document.problem(path, why))
        return None
    method = wanted["pipeline"]
    before = len(problems)
    if method != BASE and not method_listed(pipelines()[method], [pipelines()[name] for name in experiment.stages]):
        message = f"the training of {method} is not listed in `pipelines`"
        problems.append(document.problem((*path, "pipeline"), message))
    seed = wanted.get(SEED, experiment.seeds[0].value)
    problems.extend(seed_problems(document, seed, (*path, SEED)))
    names: dict[str, Choice] = {}
    for key, choices in (("model", experiment.models), ("dataset", experiment.datasets)):
        if key not in wanted and len(choices) != 1:
            problems.append(document.problem(path, f"a run of its own must name its `{key}`: there are {len(choices)}"))
        names[key] = Choice(wanted[key], (*path, key)) if key in wanted else choices[0]
        if not isinstance(names[key].value, str) or not names[key].value:
            message = f"the name of a {key} is text, not {names[key].value!r}"
            problems.append(document.problem((*path, key), message))
    new = {name: value for name, value in wanted.items() if name not in _OWN}
    settings: dict[str, dict[str, Any]] = {}
    for pipeline, axis in setting_axes(experiment, Task(method, [], path)):
        settings.setdefault(pipeline, {})[axis.name] = axis.choices[0].value
    point = Point(
        experiment=experiment,
        method=method,
        model=names["model"].value,
        dataset=names["dataset"].value,
        seed=seed,
        own={},
        settings=settings,
        shown={},
        path=path,
        model_path=names["model"].path,
        dataset_path=names["dataset"].path,
    )
    unknown = [name for name in new if not _place(method, name)]
    if unknown:
        _refuse_unknown(experiment, choice.value, path, [(point, unknown)], problems)
    elif _check_values(experiment, new, {method}, choice, problems):
        for name, value in new.items():
            _add(point, name, value, (*path, *_written(choice.value, name)))
    return point if len(problems) == before else None
