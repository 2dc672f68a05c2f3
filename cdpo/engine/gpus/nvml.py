"""What the NVIDIA driver says of this machine's GPUs: which there are, who uses them, and how much memory is free.

Asked through NVML, the library behind nvidia-smi, and only where GPUs are wanted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cdpo.errors import UsageError


class DriverError(UsageError):
    """The NVIDIA driver is there and fails."""


@dataclass(frozen=True)
class Gpu:
    #: as nvidia-smi counts, by PCI bus; the parts of a card that is cut into MIG devices have their card's
    index: int
    uuid: str
    #: as the driver calls the card: "NVIDIA A100-SXM4-80GB"
    name: str


@dataclass(frozen=True)
class Process:
    pid: int
    #: bytes of GPU memory; None where the driver does not tell
    memory: int | None


@dataclass(frozen=True)
class Usage:
    """One GPU at one moment. In a container, processes outside it are not listed; their memory still counts."""

    #: bytes, without what the driver keeps for itself; None where GPU and CPU share their memory
    total: int | None
    used: int | None
    #: processes that compute on it
    compute: tuple[Process, ...]
    #: processes that draw with it: a desktop
    graphics: tuple[Process, ...]


def list_gpus() -> list[Gpu]:
    """Every GPU of this machine, a card that is cut into MIG devices as those; none where there is no NVIDIA driver.

    Raises DriverError where there is one and it fails.
    """
    import pynvml

    found = []
    with _driver("the GPUs cannot be listed"):
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                return []
            raise
        for index in range(pynvml.nvmlDeviceGetCount()):
            card = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = pynvml.nvmlDeviceGetName(card)
            parts = [(each, _part_name(each, name)) for each in _parts(card)]
            # a card in MIG mode that is not cut yet is listed: what CUDA then says is better than a step on the CPU
            for part, called in parts or [(card, name)]:
                found.append(Gpu(index, pynvml.nvmlDeviceGetUUID(part), called))
    return found


def usage(gpu: Gpu) -> Usage:
    """What is on `gpu` now. Raises DriverError."""
    import pynvml

    with _driver(f"GPU {gpu.index} ({gpu.uuid}) cannot be looked at"):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
        memory = _memory(handle)
        return Usage(
            None if memory is None else memory.total,
            None if memory is None else memory.used,
            _processes(pynvml.nvmlDeviceGetComputeRunningProcesses, handle),
            _processes(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle),
        )


def _parts(card: Any) -> Iterator[Any]:
    """The MIG devices that a card is cut into; none where it is whole."""
    import pynvml

    modes = _or_none(pynvml.nvmlDeviceGetMigMode, card)
    if modes is None or modes[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return
    for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        # places that hold no MIG device are "not found"
        part = _or_none(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, card, place)
        if part is not None:
            yield part


def _part_name(part: Any, card: str) -> str:
    """The card's name is in it, by which devices.yaml finds a micro-batch, with any driver."""
    import pynvml

    name: str = pynvml.nvmlDeviceGetName(part)
    return name if card in name and name != card else f"{card} MIG"


def _memory(handle: Any) -> Any:
    import pynvml

    # the second version does not count what the driver keeps for itself (600 MiB on an H100) as used
    return _or_none(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)


def _processes(listed: Any, handle: Any) -> tuple[Process, ...]:
    return tuple(Process(each.pid, each.usedGpuMemory) for each in _or_none(listed, handle) or ())


def _or_none(ask: Any, *about: Any) -> Any:
    """The answer, or None where this card, or this user, does not get one."""
    import pynvml

    try:
        return ask(*about)
    except pynvml.NVMLError as error:
        if error.value in (
            pynvml.NVML_ERROR_NOT_SUPPORTED,
            pynvml.NVML_ERROR_NOT_FOUND,
            pynvml.NVML_ERROR_NO_PERMISSION,
        ):
            return None
        raise


@contextmanager
def _driver(what: str) -> Iterator[None]:
    import pynvml

    try:
        yield
    except pynvml.NVMLError as error:
        raise DriverError(
            f"{what}: the NVIDIA driver says {str(error)!r}; repair it (`nvidia-smi` must work), "
            "or write `gpus: []` in devices.yaml to run on the CPU"
        ) from error
