"""What the parts of another cut of a step have made: finished rows stay finished, however many devices come next."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.pipeline import pipelines
from cdpo.store import Store
from cdpo.store.names import key_of, short
from cdpo.store.publish import MANIFEST

if TYPE_CHECKING:
    from cdpo.plan.graph import PlannedStep

#: how the folder of a finished part ends
PART = re.compile(r"_\d+of\d+-[0-9a-z]{12}$")


def earlier(store: Store, step: "PlannedStep") -> list[str]:
    """Folders that hold the journals of other parts of `step`, or of the step that it is a part of, finished or not."""
    known = pipelines().get(step.pipeline)
    if known is None or not known.by_rows:
        return []
    whole = step.key if step.shard is None else step.shard["of"]
    room = store.steps / step.pipeline
    finished = [path for path in room.iterdir() if PART.search(path.name)] if room.is_dir() else []
    found = [path / "out" for path in sorted(finished) if _of(path / MANIFEST) == whole]
    for key in sorted(store.working()):
        work = store.work(key)
        if key != step.key and (key == whole or _of(work / "step.json") == whole):
            found.append(work / "ckpt")
    # those that it is joined from it has as its shards
    joined = {short(key) for key in step.shards}
    return [str(path) for path in found if key_of(path.parent.name) not in joined]


def _of(said: Path) -> str | None:
    """The key of the step that a manifest, or a step.json, is of a part of; None where it is of none."""
    try:
        shard = read_json(said).get("shard")
    except (OSError, DamagedFile, AttributeError):
        return None
    return shard.get("of") if isinstance(shard, dict) else None
