"""Frozen plans: `.cdpo/plans/<name>.json`, one per tasks file, and what has changed since one was frozen."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdpo.errors import UsageError
from cdpo.files import read_json, write_text
from cdpo.plan.graph import Plan
from cdpo.plan.names import safe


def place_of(tasks: Path, store: Path) -> str:
    """A tasks file as seen from the store: the same after the project that holds both was moved or copied."""
    return os.path.relpath(Path(tasks).resolve(), Path(store).resolve())


def plan_name(tasks: Path, store: Path) -> str:
    """The name of a tasks file's plan: two files of one name, in different folders, have different plans."""
    place = place_of(tasks, store)
    return f"{safe(Path(tasks).stem)}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def read_plan(store: Path, tasks: Path) -> tuple[Plan, dict[str, Any]] | None:
    """The frozen plan of a tasks file with what `prep` noted, or None."""
    path = store / "plans" / f"{plan_name(tasks, store)}.json"
    if not path.exists():
        return None
    try:
        value = read_json(path)
        return Plan.from_json(value), value.get("prep", {})
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a plan that this version reads ({error}); `cdpo prep` makes it again") from None


def write_plan(store: Path, plan: Plan, prep: Mapping[str, Any]) -> Path:
    """Freeze `plan` with what `prep` noted; one line, so that it is read as fast as it can be."""
    path = store / "plans" / f"{plan_name(Path(plan.tasks), store)}.json"
    value = {**plan.to_json(), "name": path.stem, "prep": dict(prep)}
    write_text(path, json.dumps(value, ensure_ascii=False) + "\n")
    return path


def changed_files(before: Plan, now: Plan) -> list[str]:
    """Files that decided the plan and are different, `(new)` or `(no longer read)`."""
    found = []
    for name in sorted({*before.files, *now.files}):
        old, new = (plan.files.get(name) for plan in (before, now))
        if old is None or new is None:
            found.append(f"{name} ({'new' if old is None else 'no longer read'})")
        elif old.get("sha256") != new.get("sha256"):
            found.append(name)
    return found
