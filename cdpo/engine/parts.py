"""What the parts of another cut of a step have made: finished rows stay finished, however many devices come next."""

import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.engine.process import is_alive, send
from cdpo.engine.trees import Tree
from cdpo.engine.watch import proc
from cdpo.files import read_json
from cdpo.pipeline import pipelines
from cdpo.store import Store
from cdpo.store.parts import part
from cdpo.store.publish import MANIFEST

if TYPE_CHECKING:
    from cdpo.plan.graph import PlannedStep

#: how the folder of a finished part ends
PART = re.compile(r"_\d+of\d+-[0-9a-z]{12}$")
#: seconds that a worker of another cut has to end
ENDING = 20.0
PAUSE = 0.1


def earlier(store: Store, step: "PlannedStep") -> list[str]:
    """Folders that hold the journals of another cut of `step`, or of the step that it is a part of, finished or not.

    A finished part that is no longer what it was published as is left out: its rows are made again.
    """
    known = pipelines().get(step.pipeline)
    if known is None or not known.by_rows:
        return []
    whole = step.key if step.shard is None else step.shard["of"]
    own = len(step.shards) if step.shard is None else step.shard["count"]

    def of_another_cut(said: Path) -> bool:
        found = part(said)
        return found is not None and found["of"] == whole and found.get("count") != own

    room = store.steps / step.pipeline
    finished = sorted(path for path in room.iterdir() if PART.search(path.name)) if room.is_dir() else []
    found = [path / "out" for path in finished if of_another_cut(path / MANIFEST) and store.altered(path) is None]
    for key in sorted(store.working()):
        work = store.work(key)
        if key != step.key and (key == whole or of_another_cut(work / "step.json")):
            found.append(work / "ckpt")
    return [str(path) for path in found]


def end_another_cut(store: Store, steps: Mapping[str, "PlannedStep"]) -> int:
    """End the workers that a killed execution left at another cut of `steps`, and say how many: nobody waits for what
    they make, and the rows that they have made are gone on from.
    """
    left = _orphans(store, steps)
    for who in left.values():
        send(who, signal.SIGTERM)
    limit = time.monotonic() + ENDING
    while (living := [key for key in left if store.is_locked(key)]) and time.monotonic() < limit:
        time.sleep(PAUSE)
    for key in living:
        Tree(left[key]["mark"]).kill()
    return len(left)


def _orphans(store: Store, steps: Mapping[str, "PlannedStep"]) -> dict[str, dict[str, Any]]:
    """Those workers by key, each as its proc.json has it."""
    wholes = {step.key if step.shard is None else step.shard["of"] for step in steps.values()}
    found = {}
    for key in store.working():
        said = store.work(key) / "step.json"
        shard = part(said)
        if (key if shard is None else shard["of"]) not in wholes or not store.is_locked(key):
            continue
        planned = steps.get(key)
        # a step that is to be joined of parts, and that an earlier execute made whole
        whole = planned is not None and planned.shards and "shards" not in read_json(said)["inputs"]
        if planned is not None and not whole:
            continue  # it is of this cut, and adopted
        who = proc(store.work(key))
        # a job of a batch system has no supervisor whose end would tell anything
        if who is not None and is_alive(who) and who.get("supervisor") and not is_alive(who["supervisor"]):
            found[key] = who
    return found
