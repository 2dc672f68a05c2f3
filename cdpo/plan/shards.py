"""Steps over rows, cut over several devices: each shard a step of its own, and the step itself joins what they made.

The cut is made when a plan is executed, and only there: how many devices there are must not change what a step is
called, so the step keeps its key, and its result is that of the step uncut. Which rows a shard has follows from the
rows' ids alone (`Step.share`).
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from cdpo.config.canonical import digest
from cdpo.pipeline import pipelines
from cdpo.plan.graph import Plan, PlannedStep


def cut(plan: Plan, shards: Callable[[str], int], todo: Collection[str]) -> Plan:
    """`plan` with those of the steps `todo` that work row by row cut into `shards(pipeline)` parts.

    It is `plan` itself where there is nothing to be cut.
    """
    counts = {name: shards(name) for name in {plan.steps[key].pipeline for key in todo} if _by_rows(name)}
    if all(count == 1 for count in counts.values()):
        return plan
    steps: dict[str, PlannedStep] = {}
    for key, step in plan.steps.items():
        count = counts.get(step.pipeline, 1) if key in todo else 1
        parts = [_shard(step, index, count) for index in range(count)] if count > 1 else []
        steps |= {part.key: part for part in parts}
        steps[key] = replace(step, shards=[part.key for part in parts]) if parts else step
    return replace(plan, steps=steps)


def _by_rows(pipeline: str) -> bool:
    known = pipelines().get(pipeline)
    return known is not None and known.by_rows


def _shard(step: PlannedStep, index: int, count: int) -> PlannedStep:
    what = {"of": step.key, "index": index, "count": count}
    return replace(step, key=digest({"shard": what}), name=f"{step.name}_{index + 1}of{count}", shard=what)
