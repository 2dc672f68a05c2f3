"""What every step of a plan is doing, read from the store's files and locks alone."""

import time
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.engine.process import is_alive
from cdpo.engine.watch import failure, last_progress, proc
from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.store import Store
from cdpo.store.names import short
from cdpo.store.publish import MANIFEST

if TYPE_CHECKING:
    from cdpo.plan.graph import Plan, PlannedStep


#: manifest -> when it was written (ns), and the seconds that its step took
Timed = dict[Path, tuple[int, float]]


def status(plan: "Plan", store: Store, timed: Timed | None = None) -> list[dict[str, Any]]:
    """One mapping per step, in the plan's order: key, pipeline, name, state, and what there is to say about it.

    done      finished ("seconds")
    evicted   finished, its weights removed; made again when a step needs them
    running   a worker makes it ("pid", "seconds", "done", "total", "unit"), watched by the execution that started it
    adopted   the same, but that execution is gone; the next one follows the worker
    failed    its last attempt failed ("error", "log")
    blocked   it needs a step that failed, or that is blocked ("by")
    waiting   not begun, or interrupted

    Before a step that is being made in parts stand those that run or failed (`of`: the step's key). Who asks again and
    again gives the same `timed` each time: no manifest is then read twice.
    """
    timed = {} if timed is None else timed
    finished = store.finished()
    working = set(store.working())
    parts = _parts(store, working - plan.steps.keys())
    found = {
        key: _one(step, store, finished.get(short(key)), key in working, timed) for key, step in plan.steps.items()
    }
    stuck: dict[str, str] = {key: plan.steps[key].label for key, each in found.items() if each["state"] == "failed"}
    # parents come before their children in a plan
    for key, step in plan.steps.items():
        each = found[key]
        if each["state"] != "waiting":
            continue
        lost = [part for part in parts.get(key, []) if part["state"] == "failed"]
        by = f"{lost[0]['pipeline']}/{lost[0]['name']}-{short(lost[0]['key'])}" if lost else None
        by = next((stuck[parent] for parent in step.parents if parent in stuck), by)
        if by is not None:
            each.update(state="blocked", by=by)
            stuck[key] = by
    return [each for key in found for each in (*parts.get(key, []), found[key])]


def _parts(store: Store, working: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """What the shards do that have a work folder, by the key of their step, in order."""
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for key in working:
        try:
            described = read_json(store.work(key) / "step.json")
        except (OSError, DamagedFile):
            continue
        if shard := described.get("shard"):
            said = {"key": key, "pipeline": described["pipeline"], "name": described["name"], "of": shard["of"]}
            found.setdefault(shard["of"], []).append((shard["index"], said | _at_work(store, key)))
    return {key: [said for _, said in sorted(several, key=itemgetter(0))] for key, several in found.items()}


def _one(step: "PlannedStep", store: Store, path: Path | None, has_work: bool, timed: Timed) -> dict[str, Any]:
    said: dict[str, Any] = {"key": step.key, "pipeline": step.pipeline, "name": step.name, "state": "waiting"}
    if path is not None:
        try:
            seconds = _seconds(store, path, timed)
        except (OSError, ValueError, KeyError) as error:
            return {**said, "error": f"damaged, so the next execute makes it again: {error}", "path": str(path)}
        if not store.is_evicted(path):
            return {**said, "state": "done", "seconds": seconds, "path": str(path)}
        evicted = {**said, "state": "evicted", "seconds": seconds, "path": str(path)}
        # its weights are being made again, for a step that needs them
        return evicted | _running(store.work(step.key)) if has_work and store.is_locked(step.key) else evicted
    return said | _at_work(store, step.key) if has_work else said


def _seconds(store: Store, path: Path, timed: Timed) -> float:
    manifest = path / MANIFEST
    written = manifest.stat().st_mtime_ns
    if timed.get(manifest, (None,))[0] != written:
        timed[manifest] = (written, store.manifest(path)["seconds"])
    return timed[manifest][1]


def _at_work(store: Store, key: str) -> dict[str, Any]:
    """What is to be said of a step that has a work folder."""
    work = store.work(key)
    if store.is_locked(key):
        return _running(work)
    failed = failure(work)
    if failed is None:
        return {"state": "waiting"}
    return {"state": "failed", "error": failed["reason"], "log": str(latest_log(work) or work)}


def _running(work: Path) -> dict[str, Any]:
    who = proc(work)
    # the lock is taken before the worker can say who it is
    state = "running" if who is None or is_alive(who.get("supervisor")) else "adopted"
    found: dict[str, Any] = {"state": state, "log": str(latest_log(work) or work)}
    if who is not None:
        found |= {"pid": who["pid"], "seconds": round(time.time() - who["started"], 1), "place": who.get("place")}
    latest = last_progress(work / "events.jsonl")
    if latest is not None:
        found |= {name: latest[name] for name in ("done", "total", "unit")}
    return found


def latest_log(folder: Path) -> Path | None:
    """The log of a finished step (log.txt), or of the last attempt at one that is not."""
    if (folder / "log.txt").exists():
        return folder / "log.txt"
    logs = sorted(folder.glob("attempt-*.log"), key=lambda path: int(path.stem.partition("-")[2]))
    return logs[-1] if logs else None
