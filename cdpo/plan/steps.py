"""The steps that are planned, one for each key, whichever runs need it."""

from collections.abc import Callable, Mapping
from typing import Any

from cdpo.config.canonical import digest
from cdpo.config.values import REWARD
from cdpo.pipeline import Pipeline, pipelines
from cdpo.plan.graph import Input, PlannedStep
from cdpo.plan.identity import input_identity, step_key
from cdpo.plan.parameters import Resolved


class Steps:
    """The steps of one run, in order, beside those of the runs that were planned before it."""

    def __init__(self, planned: Mapping[str, PlannedStep]) -> None:
        self.planned = planned
        self.made: list[PlannedStep] = []

    def known(self, key: str) -> PlannedStep | None:
        return self.planned.get(key) or next((step for step in self.made if step.key == key), None)

    def behind(self, inputs: Mapping[str, Input]) -> list[PlannedStep]:
        """The steps that make some of `inputs`."""
        return [step for given in inputs.values() if "step" in given and (step := self.known(given["step"]))]

    def add(self, step: PlannedStep) -> None:
        """The run needs `step` too."""
        if all(each.key != step.key for each in self.made):
            self.made.append(step)

    def make(
        self,
        pipeline: Pipeline,
        resolved: Resolved,
        inputs: dict[str, Input],
        seed: int | None,
        name: Callable[[str], str],
    ) -> PlannedStep:
        """The step of these values and inputs, added to the run; `name` gives its name by its key."""
        key = step_key(pipeline.name, pipeline.version, resolved.hashed, inputs, seed)
        step = self.known(key)
        if step is None:
            unavailable, unresolved = self._obstacles(pipeline, inputs)
            step = PlannedStep(
                key, pipeline.name, name(key), pipeline.version, resolved.values, inputs, seed, unavailable, unresolved
            )
            step.recipe = self._recipe(pipeline, resolved.hashed, inputs)
            step.trusted = [role for role, given in inputs.items() if self._is_trusted(given)]
        self.add(step)
        return step

    def _is_trusted(self, given: Input) -> bool:
        """Whether the entry of a model, or of that which it was trained from, lets its own code run."""
        parent = self.known(given["step"]) if "step" in given else None
        if parent is None:
            return bool(given.get("trusted"))
        gives = pipelines()[parent.pipeline].gives
        return gives in ("policy", REWARD) and bool({"model", "model_adapter"} & set(parent.trusted))

    def _recipe(self, pipeline: Pipeline, hashed: dict[str, Any], inputs: dict[str, Input]) -> str:
        below = {}
        for role, given in inputs.items():
            parent = self.known(given["step"]) if "step" in given else None
            below[role] = parent.recipe if parent else input_identity(given)
        return digest([pipeline.name, pipeline.version, hashed, below])[:16]

    def _obstacles(self, pipeline: Pipeline, inputs: dict[str, Input]) -> tuple[str | None, str | None]:
        """Why a step cannot run by this release, or without a network; its parents' reasons are its own."""
        parents = self.behind(inputs)
        unavailable = None if pipeline.available else f"{pipeline.name} comes with a later release"
        for parent in parents:
            if parent.unavailable:
                unavailable = unavailable or f"needs {parent.pipeline}, which is unavailable"
        unresolved = None
        for given in inputs.values():
            if "hub" in given and not given.get("revision"):
                unresolved = unresolved or f"{given['hub']} is on the Hub and not resolved to a commit"
        for parent in parents:
            if parent.unresolved:
                unresolved = unresolved or f"needs {parent.pipeline}, which is unresolved"
        return unavailable, unresolved
