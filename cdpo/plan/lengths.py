"""What `cdpo prep` counts of the rows of a step, and under which name a frozen plan keeps it."""

from pathlib import Path
from typing import Any

from cdpo.config.canonical import digest
from cdpo.errors import DamagedFile
from cdpo.files import read_json, write_json
from cdpo.pipeline import pipelines
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.plan.identity import input_identity

#: parameters that decide which rows fit a model
LIMITS = ("template", "max_length", "max_dropped", "max_new_tokens", "split", "limit")
#: of how rows are counted and looked at; with another one they are counted again
COUNTING = 1


def lengths_name(plan: Plan, step: PlannedStep) -> str:
    """The entry of a frozen plan's `lengths` that tells of `step`: that of its data, its model and its limits."""
    limits = {name: step.params.get(name) for name in LIMITS}
    if "max_length" in step.params:
        limits["max_new_tokens"] = room(step) or None
    return str([root_data(plan, step).key, input_identity(root_model(plan, step)), *limits.values()])


def root_model(plan: Plan, step: PlannedStep) -> Any:
    """The named model at the bottom of a chain of full fine-tunings: its tokenizer is that of all of them."""
    given = step.inputs["model"]
    while "step" in given:
        given = plan.steps[given["step"]].inputs["model"]
    return given


def root_data(plan: Plan, step: PlannedStep) -> PlannedStep:
    """The data that PREP made, beneath the step that added columns to it; its rows are the same."""
    made = plan.steps[step.inputs["data"]["step"]]
    return root_data(plan, made) if "data" in made.inputs else made


def room(step: PlannedStep) -> int:
    """Tokens that a training step wants behind every prompt, to sample responses of its own."""
    return int(getattr(pipelines()[step.pipeline].params.model_validate(step.params), "room", 0))


def recall(store: Path, name: str) -> dict[str, Any] | None:
    """What any `cdpo prep` of this store counted under a `lengths_name`."""
    try:
        return dict(read_json(_file(store, name)))
    except (DamagedFile, FileNotFoundError):
        return None


def remember(store: Path, name: str, found: dict[str, Any]) -> None:
    write_json(_file(store, name), found, durable=False)


def _file(store: Path, name: str) -> Path:
    return store / "lengths" / f"{digest([COUNTING, name])[:16]}.json"
