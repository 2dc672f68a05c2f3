"""What is asked of the driver, and what counts as a free GPU."""

import os
import subprocess
import sys

import pytest
from fake_gpus import GIB, A, B, card, computing

from cdpo.engine.gpus import foreign as rule
from cdpo.engine.gpus import nvml
from cdpo.engine.gpus.foreign import foreign
from cdpo.engine.gpus.nvml import DriverError, Gpu, list_gpus
from cdpo.errors import UsageError

MIG = card("GPU-cccc-3", "NVIDIA H100 PCIe", mig=[
    {"uuid": "MIG-dddd-4", "name": "NVIDIA H100 PCIe MIG 1g.10gb", "memory_total": 10 * GIB},
    {"uuid": "MIG-eeee-5", "name": "MIG 1g.10gb", "memory_total": 10 * GIB},
])  # fmt: skip


def test_cards_and_their_mig_parts_are_listed(machine):
    machine.show(A, B, MIG)
    assert list_gpus() == [
        Gpu(0, "GPU-aaaa-1", "NVIDIA A100-SXM4-80GB"),
        Gpu(1, "GPU-aabb-2", "NVIDIA A100-SXM4-80GB"),
        Gpu(2, "MIG-dddd-4", "NVIDIA H100 PCIe MIG 1g.10gb"),
        # by the card's name devices.yaml finds a micro-batch, also where the driver does not say it
        Gpu(2, "MIG-eeee-5", "NVIDIA H100 PCIe MIG"),
    ]
    assert nvml.usage(list_gpus()[2]).total == 10 * GIB
    machine.show(card("GPU-ffff-6", mig=[]))
    assert [gpu.uuid for gpu in list_gpus()] == ["GPU-ffff-6"]


def test_without_a_driver_there_are_no_gpus(machine, monkeypatch):
    monkeypatch.delenv("FAKE_NVML")
    assert list_gpus() == []


def test_a_driver_that_fails_is_said(machine):
    machine.show(fails=9)
    with pytest.raises(UsageError, match=r"(?s)'Driver Not Loaded'.*repair it.*`gpus: \[\]` in devices.yaml"):
        list_gpus()
    with pytest.raises(DriverError, match=r"GPU 0 .GPU-aaaa-1. cannot be looked at"):
        nvml.usage(Gpu(0, "GPU-aaaa-1", ""))


def test_the_real_library_agrees_with_the_made_up_one():
    """Every name that the fake has is one of nvidia-ml-py, and so is every name that cdpo uses of it."""
    code = (
        "import pynvml, runpy, sys; fake = runpy.run_path(sys.argv[1]);"
        "names = [name for name in fake if name.lower().startswith('nvml')];"
        "wrong = [name for name in names if not hasattr(pynvml, name)];"
        "wrong += [name for name in names if name.startswith('NVML_') and fake[name] != getattr(pynvml, name)];"
        "sys.exit(str(wrong) if wrong or len(names) < 15 else 0)"
    )
    from fake_gpus import FAKE

    subprocess.run([sys.executable, "-c", code, str(FAKE)], check=True)


def test_planning_imports_no_driver_library():
    code = "import sys, cdpo.cli, cdpo.engine.status, cdpo.engine.gpus.slots; sys.exit('pynvml' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("use", "text"),
    [
        ({}, None),
        # what a driver keeps is nobody's
        ({"memory_used": GIB - 1}, None),
        ({"memory_used": GIB + 1}, "1.0 GiB of 80.0 GiB are in use by nobody that can be seen from here"),
        ({"memory_total": 4 * GIB, "memory_used": GIB // 2}, "0.5 GiB of 4.0 GiB are in use"),
        # a process that computes, however little it holds
        (computing(1, memory=10 * 2**20), "process 1 .* holds 0.0 GiB"),
        ({"processes": [{"pid": 1, "memory": None}]}, r"process 1 \(.*\)$"),
        # a desktop
        ({"graphics": [{"pid": 1, "memory": 2 * GIB}], "memory_used": 2 * GIB}, None),
        ({"graphics": [{"pid": 1, "memory": 2 * GIB}], "memory_used": 4 * GIB}, r"4.0 GiB of .* in use, by process 1"),
        ({"graphics": [{"pid": 1, "memory": 60 * GIB}], "memory_used": 60 * GIB}, "60.0 GiB of 80.0 GiB are in use"),
        # GPU and CPU share their memory
        ({"memory_used": None}, None),
        ({"memory_used": None, "processes": [{"pid": 1}]}, "process 1"),
    ],
)
def test_what_counts_as_free(machine, use, text):
    import re

    machine.show(card("GPU-aaaa-1", **use) if "memory_total" not in use else {"uuid": "GPU-aaaa-1", **use})
    found = foreign(list_gpus()[0])
    assert (found is None) == (text is None)
    if text is not None:
        assert re.search(text, found.text)


def test_a_process_is_named_with_its_program_and_user(machine):
    machine.show(card("GPU-aaaa-1", **computing(os.getpid(), 2**22 + 7)))
    found = foreign(list_gpus()[0])
    assert f"process {os.getpid()} (" in found.text
    assert f"process {2**22 + 7} holds 3.0 GiB" in found.text
    assert not found.fading


def test_memory_that_nobody_is_seen_to_hold_may_be_coming_back(machine):
    machine.show(card("GPU-aaaa-1", memory_used=rule.GIB * 2))
    assert foreign(list_gpus()[0]).fading


def test_a_gpu_that_is_lost_is_not_free(machine):
    gpu = list_gpus()[0]
    machine.show(fails=15)
    assert "GPU is lost" in foreign(gpu).text
