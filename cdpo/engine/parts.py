"""What the parts of another cut of a step have made: finished rows stay finished, however many devices come next."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cdpo.pipeline import pipelines
from cdpo.store import Store
from cdpo.store.parts import part
from cdpo.store.publish import MANIFEST

if TYPE_CHECKING:
    from cdpo.plan.graph import PlannedStep

#: how the folder of a finished part ends
PART = re.compile(r"_\d+of\d+-[0-9a-z]{12}$")


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
