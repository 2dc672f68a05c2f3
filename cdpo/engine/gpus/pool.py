"""Which of this machine's GPUs an execution may use: its pool."""

from collections.abc import Sequence

from cdpo.engine.gpus.nvml import Gpu
from cdpo.errors import UsageError


def choose(gpus: Sequence[Gpu], wanted: str | Sequence[int | str], inherited: str | None) -> list[Gpu]:
    """The pool: GPUs that devices.yaml wants ("auto" or a list of indices and UUIDs) and CUDA_VISIBLE_DEVICES allows.

    As in CUDA, an inherited list ends before its first entry that names no GPU, or one that it named before. Raises
    UsageError for an entry of devices.yaml that names none.
    """
    pool = list(gpus)
    if inherited is not None:
        pool = []
        for entry in inherited.split(","):
            found = _named(gpus, entry.strip())
            if found is None or found in pool:
                break
            pool.append(found)
    if isinstance(wanted, str):
        return pool
    chosen = []
    for each in wanted:
        found = _named(gpus, str(each))
        if found is None:
            have = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
            raise UsageError(f"devices.yaml: gpus: there is no GPU {each!r} here; this machine has {have}")
        if found in pool and found not in chosen:
            chosen.append(found)
    return chosen


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.isdigit():
        return next((gpu for gpu in gpus if gpu.index == int(entry)), None)
    matching = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None
