"""What is on a GPU that no lease covers: other people's processes, or memory that has not come back yet.

A GPU is free where no process computes on it and no more memory is in use than the driver, and a desktop that only
draws, may keep: 1 GiB or a tenth of a small card, and what its graphics processes hold, up to a quarter of the card.
Outside a container processes are not seen inside it; there memory alone tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cdpo.engine import trees
from cdpo.engine.gpus import leases, nvml
from cdpo.engine.gpus.nvml import Gpu, Process
from cdpo.engine.process import descends, describe

GIB = 2**30
#: bytes in use that count as none: contexts that the driver keeps, error-correction tables
RESIDUE = 1 * GIB
#: of a card's memory: as much as RESIDUE at most, on a small one
RESIDUE_SHARE = 0.1
#: of a card's memory: as much as a desktop may have of it
DESKTOP_SHARE = 0.25


@dataclass(frozen=True)
class Foreign:
    """Why a GPU that nobody leased cannot be used."""

    #: "process 4711 (python, anna) holds 12.3 GiB"
    text: str
    #: True where it may be what an ended step has not given back yet, so that it is worth a moment's wait
    fading: bool


def foreign(gpu: Gpu) -> Foreign | None:
    """What keeps a step off `gpu`, which nobody else has leased; None where it is free."""
    try:
        found = nvml.usage(gpu)
    except nvml.DriverError as error:
        return Foreign(str(error), fading=False)
    if found.compute:
        # what carries a mark is on its way out: its step has ended, or the lease would not be free
        return Foreign(_named(found.compute), fading=all(trees.mark_of(each.pid) for each in found.compute))
    if found.used is None or found.total is None or found.used <= _allowed(found.total, found.graphics):
        return None
    text = f"{_gib(found.used)} of {_gib(found.total)} are in use"
    drawing = _named(found.graphics)
    who = f", by {drawing}" if drawing else " by nobody that can be seen from here (another container?)"
    return Foreign(text + who, fading=not drawing)


def inspect(gpu: Gpu) -> tuple[bool, str]:
    """Whether `gpu` could be had now, and its memory, lease and foreign processes in words. Raises DriverError."""
    found = nvml.usage(gpu)
    said = []
    if found.used is not None and found.total is not None:
        said.append(f"{_gib(found.total - found.used)} of {_gib(found.total)} free")
    holder = leases.holder(gpu)
    if holder is None:
        why = foreign(gpu)
        return why is None, "; ".join([*said, why.text if why else "not leased"])
    said.append(leases.describe(gpu))
    strangers = [each for each in found.compute if holder and not descends(each.pid, holder["pid"])]
    if strangers:
        said.append(f"no lease covers {_named(strangers)}")
    return False, "; ".join(said)


def _allowed(total: int, graphics: Sequence[Process]) -> float:
    desktop = sum(each.memory or 0 for each in graphics)
    return min(RESIDUE, RESIDUE_SHARE * total) + min(desktop, DESKTOP_SHARE * total)


def _named(processes: Sequence[Process]) -> str:
    return ", ".join(
        describe(each.pid) + ("" if each.memory is None else f" holds {_gib(each.memory)}") for each in processes
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
