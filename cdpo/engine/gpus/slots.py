"""Places where steps run: so many at once on the CPU, or on the GPUs that can be leased and that nobody else uses."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cdpo.engine.gpus import leases, nvml, pool
from cdpo.engine.gpus.foreign import Foreign, foreign
from cdpo.engine.gpus.nvml import Gpu

if TYPE_CHECKING:
    from cdpo.config.devices import Devices

#: seconds after which a GPU that was in use is looked at again
AGAIN = 0.5
#: seconds that an ended step's memory may take to be free before that is told
SETTLE = 10.0


@dataclass
class Place:
    """One step's place: what its worker inherits, and how the display calls it."""

    slot: int
    label: str
    gpus: list[Gpu] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    @property
    def card(self) -> str | None:
        return self.gpus[0].name if self.gpus else None

    def environment(self) -> dict[str, str]:
        if not self.gpus:
            return {"CUDA_VISIBLE_DEVICES": ""}
        return {
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in self.gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        }

    def hand_over(self) -> None:
        """Close this process's copies of the leases, once the worker has its own (or will never start)."""
        while self.descriptors:
            os.close(self.descriptors.pop())


@dataclass
class Occupied:
    """A GPU that was found in use by no step, as it was last seen."""

    why: Foreign
    since: float
    looked: float
    told: bool = False

    def is_due(self) -> bool:
        """Whether the user should hear of it now: not of memory that is being freed."""
        return not self.why.fading or time.monotonic() - self.since > SETTLE


class Slots:
    """The places of one `execute`. GPUs where there are any, else `devices.workers()` slots on the CPU."""

    def __init__(self, pool: Sequence[Gpu], workers: int) -> None:
        self.pool = list(pool)
        self.total = len(self.pool) or workers
        #: places on the CPU: their numbers come after those of the GPUs
        self._cpu = range(len(self.pool), len(self.pool) + workers)
        self._taken: set[int] = set()
        self._occupied: dict[str, Occupied] = {}

    @classmethod
    def of(cls, devices: "Devices", environment: Mapping[str, str] = os.environ) -> "Slots":
        return cls(_pool(devices, environment), devices.workers())

    def take(self, processes: int, occupied: int = 0) -> Place | None:
        """A place for a step of `processes`: so many GPUs, or none; None where there is no place now.

        A step of 0 processes needs no GPU, and runs on the CPU beside them. `occupied` steps of an earlier execute,
        whose workers run on, hold CPU slots too (on GPUs their leases do).
        """
        if not self.pool or processes == 0:
            here = [slot for slot in self._cpu if slot not in self._taken]
            if len(here) <= occupied:
                return None
            self._taken.add(here[0])
            return Place(here[0], f"cpu {here[0] - len(self.pool)}")
        free = [slot for slot in range(len(self.pool)) if slot not in self._taken]
        if len(free) < processes:
            return None
        with leases.alone() as mine:
            return self._lease(free, processes) if mine else None

    def _lease(self, free: Sequence[int], processes: int) -> Place | None:
        place = Place(-1, "")
        for slot in free:
            if len(place.gpus) == processes:
                break
            descriptor = self._lease_one(self.pool[slot])
            if descriptor is not None:
                place.descriptors.append(descriptor)
                place.gpus.append(self.pool[slot])
                place.slot = slot if place.slot < 0 else place.slot
        if len(place.gpus) < processes:
            # nothing is held while waiting for more: two executes would wait for each other
            place.hand_over()
            return None
        place.label = "gpu " + ",".join(str(gpu.index) for gpu in place.gpus)
        self._taken.update(self.pool.index(gpu) for gpu in place.gpus)
        return place

    def _lease_one(self, gpu: Gpu) -> int | None:
        before = self._occupied.get(gpu.uuid)
        now = time.monotonic()
        if before is not None and now - before.looked < AGAIN:
            return None
        descriptor = leases.lease(gpu)
        if descriptor is None:
            self._occupied.pop(gpu.uuid, None)
            return None
        why = foreign(gpu)
        if why is None:
            self._occupied.pop(gpu.uuid, None)
            return descriptor
        os.close(descriptor)
        if before is None:
            self._occupied[gpu.uuid] = Occupied(why, since=now, looked=now)
        else:
            before.why, before.looked = why, now
        return None

    def give(self, place: Place) -> None:
        place.hand_over()
        self._taken -= {self.pool.index(gpu) for gpu in place.gpus} or {place.slot}

    def shut_out(self, processes: int) -> bool:
        """Whether a step of `processes` has no place because others use GPUs that no lease covers."""
        return bool(self.pool) and processes > len(self.pool) - len(self._occupied)

    def news(self) -> Iterator[str]:
        """Each GPU that came to be occupied, once."""
        for gpu in self.pool:
            found = self._occupied.get(gpu.uuid)
            if found is not None and found.is_due() and not found.told:
                found.told = True
                yield f"GPU {gpu.index} is left out until it is free: {found.why.text}"

    def obstacles(self) -> list[str]:
        """Why each GPU of the pool is not free, as last seen."""
        found = []
        for gpu in self.pool:
            occupied = self._occupied.get(gpu.uuid)
            found.append(f"GPU {gpu.index}: {occupied.why.text if occupied else leases.describe(gpu)}")
        return found


def cards(devices: "Devices", environment: Mapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """Name and bytes of each GPU that steps may run on; none where they run on the CPU."""
    found = [(gpu.name, nvml.usage(gpu).total) for gpu in _pool(devices, environment)]
    return [(name, total) for name, total in found if total is not None]


def _pool(devices: "Devices", environment: Mapping[str, str]) -> list[Gpu]:
    if devices.gpus == []:
        return []
    return pool.choose(nvml.list_gpus(), devices.gpus, environment.get("CUDA_VISIBLE_DEVICES"))
