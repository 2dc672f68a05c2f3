"""The engine that devices.yaml names: all run the same plan with the same workers and give the same Outcome."""

from typing import TYPE_CHECKING, Protocol

from cdpo.engine.batch.backend import Backend
from cdpo.engine.batch.engine import BatchEngine
from cdpo.engine.local.engine import LocalEngine
from cdpo.engine.outcome import Outcome
from cdpo.engine.show.display import Display
from cdpo.store import Store

if TYPE_CHECKING:
    from cdpo.config.devices import Devices
    from cdpo.plan.graph import Plan


class Engine(Protocol):
    def run(self, plan: "Plan", keys: set[str] | None = None, fail_fast: bool = False) -> Outcome:
        """Make every step of `plan`, or those of `keys` and what they need, that is not finished yet."""


def make_engine(store: Store, devices: "Devices", display: Display | None = None) -> Engine:
    backend = make_backend(store, devices)
    if backend is None:
        return LocalEngine(store, devices, display)
    return BatchEngine(store, devices, backend, display)


def make_backend(store: Store, devices: "Devices") -> Backend | None:
    """The batch system of devices.yaml; None where steps run on this machine."""
    if devices.engine == "slurm":
        from cdpo.engine.batch.slurm import Slurm

        return Slurm(store, devices)
    if devices.engine == "ray":
        from cdpo.engine.batch.ray import Ray

        return Ray(store, devices)
    return None
