"""GPU leases with a made-up nvidia-smi: who gets which card, and for how long."""

import itertools
import os
import subprocess
import sys

import pytest
from engine_bench import of_kind, wait_for

from cdpo.config.devices import Devices
from cdpo.engine import gpus
from cdpo.engine.gpus import Gpu, choose, parse_list
from cdpo.engine.slots import Slots
from cdpo.errors import UsageError
from cdpo.files import read_json

LISTING = """GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-aaaa-1)
GPU 1: NVIDIA A100-SXM4-80GB (UUID: GPU-aabb-2)
GPU 2: NVIDIA H100 PCIe (UUID: GPU-cccc-3)
  MIG 1g.10gb     Device  0: (UUID: MIG-dddd-4)
  MIG 1g.10gb     Device  1: (UUID: MIG-eeee-5)
"""
ONE, TWO = Gpu(0, "GPU-aaaa-1", "NVIDIA A100-SXM4-80GB"), Gpu(1, "GPU-aabb-2", "NVIDIA A100-SXM4-80GB")
MIG = [Gpu(2, "MIG-dddd-4", "NVIDIA H100 PCIe MIG 1g.10gb"), Gpu(2, "MIG-eeee-5", "NVIDIA H100 PCIe MIG 1g.10gb")]


@pytest.fixture(autouse=True)
def leases(tmp_path, monkeypatch):
    monkeypatch.setenv("CDPO_GPU_LEASES", str(tmp_path / "leases"))
    return tmp_path / "leases"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """A machine with two cards."""
    room = tmp_path / "bin"
    room.mkdir()
    script = room / "nvidia-smi"
    script.write_text("#!/bin/sh\nhead -2 <<'END'\n" + LISTING + "END\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{room}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_cards_and_their_mig_parts_are_read():
    assert parse_list(LISTING) == [ONE, TWO, *MIG]
    assert parse_list("") == []


@pytest.mark.parametrize(
    ("wanted", "inherited", "chosen"),
    [
        ("auto", None, [ONE, TWO]),
        ("auto", "", []),
        ("auto", "1", [TWO]),
        ("auto", "1,0", [TWO, ONE]),
        ("auto", "GPU-aabb-2", [TWO]),
        ("auto", "GPU-aab", [TWO]),
        ("auto", "GPU-aa", []),
        ("auto", "0,7,1", [ONE]),
        ("auto", "-1", []),
        ([1], None, [TWO]),
        (["GPU-aaaa-1", 1], "1", [TWO]),
        ([], None, []),
    ],
)
def test_the_pool_is_what_is_wanted_and_inherited(wanted, inherited, chosen):
    assert choose([ONE, TWO], wanted, inherited) == chosen


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"there is no GPU 5 here; this machine has 0 \(GPU-aaaa-1\)"):
        choose([ONE], [5], None)


def test_a_lease_is_exclusive_and_ends_with_its_last_holder(leases):
    held = gpus.lease(ONE)
    assert gpus.lease(ONE) is None
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[held])
    os.close(held)
    assert gpus.lease(ONE) is None
    child.communicate()
    again = gpus.lease(ONE)
    assert again is not None
    os.close(again)
    assert leases.stat().st_mode & 0o7777 == 0o1777
    assert (leases / "GPU-aaaa-1.lock").stat().st_mode & 0o777 == 0o666


def test_a_step_of_two_processes_takes_two_cards_or_none():
    slots = Slots([ONE, TWO], workers=9)
    elsewhere = gpus.lease(TWO)
    assert slots.take(2) is None
    single = slots.take(1)
    assert (single.label, single.card) == ("gpu 0", "NVIDIA A100-SXM4-80GB")
    slots.give(single)
    os.close(elsewhere)
    both = slots.take(2)
    assert both.label == "gpu 0,1"
    assert both.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-1,GPU-aabb-2"
    assert slots.take(1) is None
    slots.give(both)
    assert slots.take(2) is not None


def test_cpu_slots_leave_room_for_orphans():
    slots = Slots([], workers=2)
    assert slots.take(1, occupied=2) is None
    assert slots.take(1, occupied=1).label == "cpu 0"
    assert slots.take(1, occupied=1) is None
    assert slots.take(1).label == "cpu 1"


def test_a_broken_driver_is_said(tmp_path, nvidia_smi):
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'no devices were found'; exit 6\n")
    with pytest.raises(UsageError, match="no devices were found"):
        gpus.list_gpus()


def test_workers_get_uuids_and_never_share_a_card(bench, nvidia_smi):
    shape = {name: [] for name in "abcdef"}
    plan = bench.plan(shape, **{name: {"seconds": 0.2} for name in shape})
    both = [bench.execute(devices={"gpus": "auto"}), bench.execute(devices={"gpus": "auto"})]
    ends = [bench.finish(process) for process in both]
    assert [code for code, _ in ends] == [0, 0]
    assert set(bench.told().values()) == {1}
    assert {event["place"] for _, events in ends for event in of_kind(events, "step_started")} == {"gpu 0", "gpu 1"}
    spans = {}
    for key in plan.steps:
        manifest = read_json(bench.store.find(key) / "manifest.json")
        (card,) = manifest["device"]["gpus"]
        assert manifest["summary"]["visible"] == card["uuid"]
        spans.setdefault(card["uuid"], []).append((manifest["started"], manifest["finished"]))
    for each in spans.values():
        each.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(each))


def test_an_execution_waits_for_a_card_that_another_program_leased(bench, nvidia_smi, leases):
    bench.plan({"a": []})
    code = (
        "import sys; from cdpo.engine import gpus; gpus.lease(gpus.list_gpus()[0]); print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    process = bench.execute(devices={"gpus": [0]})
    assert not wait_for(lambda: bench.told(), 0.7)
    other.communicate()
    assert bench.finish(process)[0] == 0


def test_more_processes_than_cards_are_refused(bench, nvidia_smi):
    from cdpo.engine.local import LocalEngine

    plan = bench.plan({"a": []})
    devices = Devices.model_validate({"pipelines": {"TRIVIAL": {"processes": 3}}})
    with pytest.raises(UsageError, match="processes: 3 need a GPU each, and 2 can be used here"):
        LocalEngine(bench.store, devices, modules={}).run(plan)
