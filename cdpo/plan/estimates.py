"""What a plan would cost in time and disk, by what finished steps of the same pipelines took."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from cdpo.errors import DamagedFile
from cdpo.plan.graph import PlannedStep

if TYPE_CHECKING:
    from cdpo.store import Store

#: finished steps of a pipeline that are looked at
SAMPLE = 20


def estimate_lines(store: "Store", todo: Sequence[PlannedStep]) -> list[str]:
    """Lines for `cdpo plan`; pipelines that were never timed here are named, not guessed."""
    seconds, size, unknown = 0.0, 0.0, []
    counts: dict[str, int] = {}
    for step in todo:
        counts[step.pipeline] = counts.get(step.pipeline, 0) + 1
    finished: dict[str, list[Path]] = {}
    for folder in store.finished().values():
        finished.setdefault(folder.parent.name, []).append(folder)
    for pipeline, count in counts.items():
        past = []
        for folder in finished.get(pipeline, [])[:SAMPLE]:
            with contextlib.suppress(OSError, DamagedFile):
                past.append(store.manifest(folder))
        if not past:
            unknown.append(pipeline)
            continue
        seconds += count * mean(manifest["seconds"] for manifest in past)
        size += count * mean(sum(each["size"] for each in manifest["outputs"].values()) for manifest in past)
    if not todo:
        return ["nothing to run"]
    lines = []
    if seconds:
        lines.append(
            f"about {_duration(seconds)} of step time and {show_size(size)} of disk, by past steps of this store"
        )
    if unknown:
        lines.append(f"never timed here: {', '.join(unknown)}")
    return lines


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def show_size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
