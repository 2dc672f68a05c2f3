"""Places where steps run: so many at once on the CPU, or on the GPUs that can be leased."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cdpo.engine import gpus
from cdpo.engine.gpus import Gpu

if TYPE_CHECKING:
    from cdpo.config.devices import Devices


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


class Slots:
    """The places of one `execute`. GPUs where there are any, else `devices.workers()` slots on the CPU."""

    def __init__(self, pool: Sequence[Gpu], workers: int) -> None:
        self.pool = list(pool)
        self.total = len(self.pool) or workers
        self._taken: set[int] = set()

    @classmethod
    def of(cls, devices: "Devices", environment: Mapping[str, str] = os.environ) -> "Slots":
        if devices.gpus == []:
            return cls([], devices.workers())
        found = gpus.choose(gpus.list_gpus(), devices.gpus, environment.get("CUDA_VISIBLE_DEVICES"))
        return cls(found, devices.workers())

    def take(self, processes: int, occupied: int = 0) -> Place | None:
        """A place for a step of `processes`; None where none is free now.

        `occupied` steps of an earlier execute, whose workers run on, hold CPU slots too (on GPUs their leases do).
        """
        free = [slot for slot in range(self.total) if slot not in self._taken]
        if not self.pool:
            if len(free) <= occupied:
                return None
            self._taken.add(free[0])
            return Place(free[0], f"cpu {free[0]}")
        place = Place(-1, "")
        for slot in free:
            if len(place.gpus) == processes:
                break
            descriptor = gpus.lease(self.pool[slot])
            if descriptor is not None:
                place.descriptors.append(descriptor)
                place.gpus.append(self.pool[slot])
                place.slot = slot if place.slot < 0 else place.slot
        if len(place.gpus) < processes:
            place.hand_over()
            return None
        place.label = "gpu " + ",".join(str(gpu.index) for gpu in place.gpus)
        self._taken.update(self.pool.index(gpu) for gpu in place.gpus)
        return place

    def give(self, place: Place) -> None:
        place.hand_over()
        self._taken -= {self.pool.index(gpu) for gpu in place.gpus} or {place.slot}
