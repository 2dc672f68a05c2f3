"""Which steps of a plan must run: those that are wanted and not there, and what they need that is not there either."""

import graphlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cdpo.errors import UsageError
from cdpo.plan.shards import cut
from cdpo.store import Store
from cdpo.store.names import short

if TYPE_CHECKING:
    from cdpo.plan.graph import Plan

#: what an input must have, one of these, to be read here
LOCAL = frozenset(("step", "files", "folder", "plugin", "built"))


@dataclass
class Selection:
    #: steps to run, parents before children
    todo: list[str] = field(default_factory=list)
    #: finished steps that are wanted, or that a step to run reads; with their folders
    cached: dict[str, Path] = field(default_factory=dict)
    #: finished steps of `todo` that are no longer whole, and what is wrong with them
    damaged: dict[str, str] = field(default_factory=dict)
    #: finished steps of `todo` whose weights were evicted and that a step to run reads
    evicted: set[str] = field(default_factory=set)
    #: seconds that the cached steps took, by pipeline
    seconds: dict[str, list[float]] = field(default_factory=dict)


def select(plan: "Plan", store: Store, keys: set[str] | None = None) -> Selection:
    """What is to be done for `keys` (None: the whole plan). Finished steps are checked against their manifests by size.

    Raises UsageError where a step to run is one that this release or this machine cannot run.
    """
    finished = store.finished()
    order = tuple(graphlib.TopologicalSorter({key: step.parents for key, step in plan.steps.items()}).static_order())
    chosen = Selection()
    read: set[str] = set()
    for key in reversed(order):
        if keys is not None and key not in keys and key not in read:
            continue
        step = plan.steps[key]
        path = finished.get(short(key))
        if path is not None:
            try:
                manifest = store.manifest(path)
            except (OSError, ValueError):
                manifest = {}
            wrong = store.intact(path, manifest or None)
            if wrong is not None:
                chosen.damaged[key] = wrong
            elif key in read and store.is_evicted(path):
                chosen.evicted.add(key)
            else:
                chosen.cached[key] = path
                chosen.seconds.setdefault(step.pipeline, []).append(manifest["seconds"])
                continue
        chosen.todo.append(key)
        read.update(step.parents)
    chosen.todo.reverse()
    _runnable(plan, chosen.todo)
    if chosen.todo:
        store.check_rooms()
    return chosen


def select_parts(
    plan: "Plan", store: Store, keys: set[str] | None, selection: Selection, shards: Callable[[str], int]
) -> tuple["Plan", Selection]:
    """`plan` with the steps of `selection` cut into `shards(pipeline)` parts each, and what is to be done of it."""
    whole, plan = plan, cut(plan, shards, set(selection.todo))
    return plan, selection if plan is whole else select(plan, store, keys)


def _runnable(plan: "Plan", todo: list[str]) -> None:
    problems = []
    for key in todo:
        step = plan.steps[key]
        reason = step.unavailable or step.unresolved
        if reason:
            problems.append(f"{step.label}: cannot be run: {reason}")
        for role, planned in step.inputs.items():
            if not LOCAL & planned.keys():
                problems.append(f"{step.label}: its {role} is not on this machine ({planned}); run `cdpo prep` first")
    if problems:
        raise UsageError("\n".join(problems))
