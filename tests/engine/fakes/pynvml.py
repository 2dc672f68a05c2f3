"""A made-up NVIDIA driver: put this folder on PYTHONPATH, and name a JSON file in $FAKE_NVML.

    {"gpus": [{"uuid": "GPU-aaaa", "name": "NVIDIA A100-SXM4-80GB",
               "memory_total": 85899345920, "memory_used": 0,       bytes; null: the driver does not tell
               "processes": [{"pid": 4711, "memory": 12884901888}], compute
               "graphics": [...],                                    the same for a desktop
               "mig": [{"uuid": "MIG-bbbb", "name": ..., ...}]}],    its parts, described alike
     "fails": 15}                                                    an NVML error code that every call ends in

Everything but the UUID has a default. The file is read at each call, so a test may change it at any time (by renaming
another over it). Without $FAKE_NVML there is no driver.
"""

import json
import os
from types import SimpleNamespace

NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_FUNCTION_NOT_FOUND = 13
NVML_ERROR_GPU_IS_LOST = 15
NVML_DEVICE_MIG_ENABLE = 1
nvmlMemory_v2 = 2


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value

    def __str__(self):
        return {9: "Driver Not Loaded", 15: "GPU is lost"}.get(self.value, f"NVML error {self.value}")


def _machine():
    path = os.environ.get("FAKE_NVML")
    if path is None:
        raise NVMLError(NVML_ERROR_LIBRARY_NOT_FOUND)
    with open(path, encoding="utf-8") as stream:
        found = json.load(stream)
    if "fails" in found:
        raise NVMLError(found["fails"])
    return found["gpus"]


def _find(handle):
    for card in _machine():
        for each in (card, *card.get("mig", ())):
            if each["uuid"] == handle:
                return each
    raise NVMLError(NVML_ERROR_NOT_FOUND)


def nvmlInit():
    _machine()


def nvmlDeviceGetCount():
    return len(_machine())


def nvmlDeviceGetHandleByIndex(index):
    return _machine()[index]["uuid"]


def nvmlDeviceGetHandleByUUID(uuid):
    return _find(uuid)["uuid"]


def nvmlDeviceGetUUID(handle):
    return handle


def nvmlDeviceGetName(handle):
    return _find(handle).get("name", "NVIDIA Pretend")


def nvmlDeviceGetMigMode(handle):
    if "mig" not in _find(handle):
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return [NVML_DEVICE_MIG_ENABLE, NVML_DEVICE_MIG_ENABLE]


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return 7


def nvmlDeviceGetMigDeviceHandleByIndex(handle, index):
    parts = _find(handle)["mig"]
    if index >= len(parts):
        raise NVMLError(NVML_ERROR_NOT_FOUND)
    return parts[index]["uuid"]


def nvmlDeviceGetMemoryInfo(handle, version=None):
    card = _find(handle)
    total, used = card.get("memory_total", 80 * 2**30), card.get("memory_used", 0)
    if used is None:
        raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
    return SimpleNamespace(total=total, used=used, free=total - used)


def nvmlDeviceGetComputeRunningProcesses(handle):
    return _processes(_find(handle).get("processes", ()))


def nvmlDeviceGetGraphicsRunningProcesses(handle):
    return _processes(_find(handle).get("graphics", ()))


def _processes(described):
    return [SimpleNamespace(pid=each["pid"], usedGpuMemory=each.get("memory")) for each in described]
