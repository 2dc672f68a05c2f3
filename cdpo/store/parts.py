"""Parts of steps, as the store's files tell of them (cdpo/plan/shards.py cuts, `cdpo execute` joins)."""

from pathlib import Path
from typing import Any

from cdpo.errors import DamagedFile
from cdpo.files import read_json


def part(said: Path) -> dict[str, Any] | None:
    """What a manifest, or a step.json, tells of a part: {"of": the key of the whole, "index", "count"}; else None."""
    try:
        shard = read_json(said).get("shard")
    except (OSError, DamagedFile, AttributeError):
        # nothing that could be joined
        return None
    return shard if isinstance(shard, dict) and isinstance(shard.get("of"), str) else None
