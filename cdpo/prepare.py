"""What `cdpo prep` does beyond planning: prepare the data, and see that the rows fit the models."""

from pathlib import Path
from typing import Any

from cdpo.config.devices import Devices
from cdpo.engine.display import Display
from cdpo.engine.local import LocalEngine
from cdpo.errors import CdpoError, StepError, UsageError
from cdpo.plan.freeze import read_plan
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.plan.identity import input_identity
from cdpo.project import Project

PREP = "PREP"


def prepare(project: Project, plan: Plan, devices: Devices, display: Display) -> dict[str, Any]:
    """Make the datasets of a plan and check every pair of dataset and model; returns what was found, for the plan.

    Raises UsageError where a reference is not resolved, data is refused, or rows do not fit a model.
    """
    unresolved = sorted({step.unresolved for step in plan.steps.values() if step.unresolved and not step.parents})
    unresolved += sorted(
        {
            f"{given['hub']} is on the Hub and not resolved to a commit"
            for step in plan.steps.values()
            for given in step.inputs.values()
            if "hub" in given and not given.get("revision")
        }
        - set(unresolved)
    )
    if unresolved:
        listed = "\n  ".join(unresolved)
        advice = "this release reads local files and folders: give these names a `path:` in the name tables"
        raise UsageError(f"{project.tasks}: cannot be prepared:\n  {listed}\n{advice}")
    wanted = {step.key for step in plan.steps.values() if step.pipeline == PREP}
    outcome = LocalEngine(project.store, devices, display).run(plan, keys=wanted)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.failed:
        reasons = "\n".join(f"{plan.steps[key].label}: {why}" for key, why in outcome.failed.items())
        raise UsageError(f"the data is refused, and nothing was planned:\n{reasons}")
    return {"lengths": check_lengths(project, plan)}


def check_lengths(project: Project, plan: Plan) -> dict[str, Any]:
    """Token lengths of every dataset under every model that is trained on it; refuses what training would refuse.

    What an earlier plan found for the same data and model is not measured again.
    """
    frozen = read_plan(project.store.root, project.tasks)
    known = frozen[1].get("lengths", {}) if frozen else {}
    found: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for step in plan.steps.values():
        if "max_length" not in step.params or "data" not in step.inputs or step.unavailable:
            continue
        root = _root_model(plan, step)
        identity = str([step.inputs["data"]["step"], input_identity(root), *_limits(step)])
        if identity in found or identity in problems:
            continue
        if identity not in known:
            try:
                known[identity] = _measure(project, step, root)
            except StepError as error:
                problems[identity] = f"{step.pipeline} of {step.name}: {error}"
                continue
        found[identity] = known[identity]
    if problems:
        raise UsageError("rows do not fit the models, and nothing was planned:\n" + "\n".join(problems.values()))
    return found


def _limits(step: PlannedStep) -> list[Any]:
    return [step.params.get(name) for name in ("template", "max_length", "max_dropped")]


def _root_model(plan: Plan, step: PlannedStep) -> Any:
    """The named model at the bottom of a chain of full fine-tunings: its tokenizer is that of all of them."""
    given = step.inputs["model"]
    while "step" in given:
        given = plan.steps[given["step"]].inputs["model"]
    return given


def _measure(project: Project, step: PlannedStep, root: Any) -> dict[str, Any]:
    from tempfile import TemporaryDirectory

    from cdpo.data.preflight import usable_rows
    from cdpo.data.prepared import read_split
    from cdpo.models import build, load_tokenizer
    from cdpo.train.rows import context

    data = project.store.find(step.inputs["data"]["step"])
    if data is None:
        raise CdpoError(f"{step.label}: its data is gone from the store; run `cdpo prep` again")
    with TemporaryDirectory() as scratch:
        if "built" in root:
            build(root["built"], Path(scratch))
        folder = Path(root.get("folder") or scratch)
        tokenizer = load_tokenizer(folder, template=step.params.get("template"))
        longest = context(folder, step.params["max_length"])
        reports = {}
        for split in ("train", "tune", "eval"):
            _, report = usable_rows(
                read_split(data / "out", split), tokenizer, longest, step.params["max_dropped"], split
            )
            reports[split] = report.summary()
    return reports
