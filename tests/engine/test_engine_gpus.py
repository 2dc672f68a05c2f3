"""The pool of GPUs and their leases: who gets which card, for how long. The driver is made up, processes are real."""

import itertools
import os
import subprocess
import sys
import time

import pytest
from engine_bench import TRIVIAL, of_kind, wait_for
from fake_gpus import GIB, A, B, card, computing

from cdpo.config.devices import Devices
from cdpo.engine import trees
from cdpo.engine.gpus import leases, slots
from cdpo.engine.gpus.nvml import Gpu, list_gpus
from cdpo.engine.gpus.pool import choose
from cdpo.engine.gpus.slots import Slots
from cdpo.engine.process import identity
from cdpo.errors import UsageError
from cdpo.files import read_json

ONE, TWO = Gpu(0, "GPU-aaaa-1", "NVIDIA A100-SXM4-80GB"), Gpu(1, "GPU-aabb-2", "NVIDIA A100-SXM4-80GB")
PART = Gpu(2, "MIG-dddd-4", "NVIDIA H100 PCIe MIG 1g.10gb")
AUTO = {"gpus": "auto"}


@pytest.fixture(autouse=True)
def _machine(machine):
    """No test of this file sees the cards, or the leases, of the machine that it runs on."""


@pytest.mark.parametrize(
    ("wanted", "inherited", "chosen"),
    [
        ("auto", None, [ONE, TWO, PART]),
        ("auto", "", []),
        ("auto", "1", [TWO]),
        ("auto", "1,0", [TWO, ONE]),
        ("auto", "1,1,0", [TWO]),
        ("auto", "GPU-aabb-2", [TWO]),
        ("auto", "GPU-aab", [TWO]),
        ("auto", "GPU-aa", []),
        ("auto", "MIG-dddd-4", [PART]),
        ("auto", "0,7,1", [ONE]),
        ("auto", "-1", []),
        ([1], None, [TWO]),
        ([1, "GPU-aabb-2"], None, [TWO]),
        (["GPU-aaaa-1", 1], "1", [TWO]),
        ([], None, []),
    ],
)
def test_the_pool_is_what_is_wanted_and_inherited(wanted, inherited, chosen):
    assert choose([ONE, TWO, PART], wanted, inherited) == chosen


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"there is no GPU 5 here; this machine has 0 \(GPU-aaaa-1\)"):
        choose([ONE], [5], None)


def test_a_lease_is_exclusive_and_ends_with_its_last_holder():
    held = leases.lease(ONE)
    assert leases.lease(ONE) is None
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[held])
    os.close(held)
    assert leases.lease(ONE) is None
    child.communicate()
    again = leases.lease(ONE)
    assert again is not None
    os.close(again)
    folder = leases.lease_folder()
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666}


def test_a_lease_says_who_has_it():
    assert leases.holder(ONE) is None
    held = leases.lease(ONE)
    assert leases.holder(ONE) == {}
    assert leases.describe(ONE) == "leased a moment ago"
    who = {**identity(), "user": "anna", "step": "DPO/x-0123", "store": "/s", "since": time.time()}
    leases.sign(held, {"long": "x" * 500})
    leases.sign(held, who)
    assert leases.holder(ONE) == who
    assert leases.describe(ONE).endswith(f"by anna: process {os.getpid()} makes DPO/x-0123 in /s")
    leases.sign(held, {**who, "start": 1})
    assert "it has ended, and something that it started still runs (`cdpo stop --store /s`)" in leases.describe(ONE)
    os.close(held)
    assert leases.holder(ONE) is None
    # the next holder is not taken for the last one
    again = leases.lease(ONE)
    assert leases.holder(ONE) == {}
    os.close(again)


@pytest.mark.parametrize("place", ["file/leases", "leases"])
def test_a_place_that_holds_no_leases_is_said(tmp_path, monkeypatch, place):
    (tmp_path / "file").touch()
    (tmp_path / "leases" / "GPU-aaaa-1.lock").mkdir(parents=True)
    monkeypatch.setenv("CDPO_GPU_LEASES", str(tmp_path / place))
    with pytest.raises(UsageError, match=r"no GPU can be leased there .*CDPO_GPU_LEASES"):
        leases.lease(ONE)


def test_a_step_of_two_processes_takes_two_cards_or_none():
    pool = Slots([ONE, TWO], workers=9)
    elsewhere = leases.lease(TWO)
    assert pool.take(2) is None
    assert leases.holder(ONE) is None
    single = pool.take(1)
    assert (single.label, single.card) == ("gpu 0", "NVIDIA A100-SXM4-80GB")
    pool.give(single)
    os.close(elsewhere)
    both = pool.take(2)
    assert both.label == "gpu 0,1"
    assert both.environment()["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa-1,GPU-aabb-2"
    assert pool.take(1) is None
    pool.give(both)
    assert pool.take(2) is not None


def test_nobody_takes_leases_while_another_does():
    pool = Slots([ONE, TWO], workers=9)
    with leases.alone() as first:
        assert first
        with leases.alone() as second:
            assert not second
        assert pool.take(1) is None
    assert pool.take(2) is not None


def test_cpu_slots_leave_room_for_orphans():
    pool = Slots([], workers=2)
    assert pool.take(1, occupied=2) is None
    assert pool.take(1, occupied=1).label == "cpu 0"
    assert pool.take(1, occupied=1) is None
    assert pool.take(1).label == "cpu 1"


def test_a_card_in_foreign_hands_is_left_out_and_told_once(machine, monkeypatch):
    monkeypatch.setattr(slots, "AGAIN", 0.0)
    machine.show(card("GPU-aaaa-1", **computing(1)), B)
    pool = Slots(list_gpus(), workers=9)
    assert pool.take(2) is None
    place = pool.take(1)
    assert place.label == "gpu 1"
    (text,) = pool.news()
    assert text.startswith("GPU 0 is left out until it is free: process 1 (")
    assert text.endswith(" holds 3.0 GiB")
    assert pool.take(1) is None
    assert list(pool.news()) == []
    assert pool.shut_out(2)
    assert not pool.shut_out(1)
    machine.show(A, B)
    again = pool.take(1)
    assert again.label == "gpu 0"
    assert not pool.shut_out(2)
    pool.give(again)
    # another time it is told again
    machine.show(card("GPU-aaaa-1", **computing(1)), B)
    assert pool.take(1) is None
    assert len(list(pool.news())) == 1


def test_memory_of_an_ended_step_is_waited_for_before_it_is_told(machine, monkeypatch):
    monkeypatch.setattr(slots, "AGAIN", 0.0)
    machine.show(card("GPU-aaaa-1", memory_used=5 * GIB))
    pool = Slots(list_gpus(), workers=9)
    assert pool.take(1) is None
    assert list(pool.news()) == []
    monkeypatch.setattr(slots, "SETTLE", -1.0)
    assert len(list(pool.news())) == 1
    machine.show(A)
    assert pool.take(1) is not None


def test_a_dying_process_of_a_step_is_no_foreign_one(machine):
    worker = subprocess.Popen(["sleep", "60"], env={**os.environ, trees.MARK: "1:2/key/3"})
    try:
        assert wait_for(lambda: trees.mark_of(worker.pid) == "1:2/key/3")
        machine.show(card("GPU-aaaa-1", **computing(worker.pid)))
        pool = Slots(list_gpus(), workers=9)
        assert pool.take(1) is None
        assert list(pool.news()) == []
    finally:
        worker.kill()
        worker.wait()


def test_workers_get_uuids_and_never_share_a_card(bench):
    shape = {name: [] for name in "abcdef"}
    plan = bench.plan(shape, **{name: {"seconds": 0.2} for name in shape})
    both = [bench.execute(devices=AUTO), bench.execute(devices=AUTO)]
    ends = [bench.finish(process) for process in both]
    assert [code for code, _ in ends] == [0, 0]
    assert set(bench.told().values()) == {1}
    assert {event["place"] for _, events in ends for event in of_kind(events, "step_started")} == {"gpu 0", "gpu 1"}
    spans = {}
    for key in plan.steps:
        manifest = read_json(bench.store.find(key) / "manifest.json")
        (gpu,) = manifest["device"]["gpus"]
        assert manifest["summary"]["visible"] == gpu["uuid"]
        spans.setdefault(gpu["uuid"], []).append((manifest["started"], manifest["finished"]))
    for each in spans.values():
        each.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(each))


#: takes two cards a hundred times, and tells when it has them and when it gives them back
TAKER = """
import sys, time
from cdpo.engine.gpus.nvml import list_gpus
from cdpo.engine.gpus.slots import Slots
pool = Slots(list_gpus(), workers=9)
for _ in range(100):
    while (place := pool.take(2)) is None:
        time.sleep(0.001)
    began = time.monotonic()
    time.sleep(0.001)
    print(began, time.monotonic())
    pool.give(place)
"""


def test_several_that_want_two_cards_each_do_not_wait_for_each_other(bench):
    environment = {**os.environ, "PYTHONPATH": bench.paths}
    takers = [
        subprocess.Popen([sys.executable, "-c", TAKER], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    spans = []
    for taker in takers:
        text, _ = taker.communicate(timeout=30)
        assert taker.returncode == 0
        spans += [tuple(map(float, line.split())) for line in text.splitlines()]
    assert len(spans) == 300
    spans.sort()
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_an_execution_waits_for_a_card_that_another_program_leased_and_says_so(bench):
    bench.plan({"a": []})
    code = (
        "import sys; from cdpo.engine.gpus import leases, nvml; held = leases.lease(nvml.list_gpus()[0]);"
        "print(flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": bench.paths, "CDPO_GPU_LEASES": str(bench.leases)}
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    other.stdout.readline()
    process = bench.execute(devices={"gpus": [0]})
    assert bench.happened("note")
    assert not bench.told()
    other.communicate()
    code, events = bench.finish(process)
    assert code == 0
    (note,) = of_kind(events, "note")
    assert note["text"].startswith("waiting for a GPU: GPU 0: leased a moment ago. Work goes on as soon as one is free")


def test_a_card_is_taken_as_soon_as_the_foreign_process_is_gone(bench, machine):
    bench.plan({"a": []})
    foreign = subprocess.Popen(["sleep", "60"])
    machine.show(card("GPU-aaaa-1", **computing(foreign.pid, memory=12 * GIB)))
    process = bench.execute(devices=AUTO)
    try:
        assert bench.happened("note", times=2)
        assert not bench.told()
    finally:
        foreign.kill()
        foreign.wait()
    machine.show(A)
    code, events = bench.finish(process)
    assert code == 0
    one, two = [event["text"] for event in of_kind(events, "note")]
    assert f"GPU 0 is left out until it is free: process {foreign.pid} (sleep, " in one
    assert "holds 12.0 GiB" in one
    assert two.startswith(f"waiting for a GPU: GPU 0: process {foreign.pid} (sleep, ")
    assert "`gpus: []` for the CPU" in two


def test_smaller_steps_go_on_where_others_keep_a_card(bench, machine):
    """A step that needs more cards than others leave waits; it is not allowed to stop what needs fewer."""
    machine.show(A, card("GPU-aabb-2", **computing(1)))
    bench.plan({"a": [], "b": [], "c": []}, a={"pipeline": "PAIR"})
    devices = {**AUTO, "pipelines": {"PAIR": {"processes": 2}}}
    process = bench.execute(devices=devices, modules={"TRIVIAL": TRIVIAL, "PAIR": TRIVIAL})
    assert wait_for(lambda: bench.told()["end", "b"] and bench.told()["end", "c"], 20)
    assert not bench.told()["begin", "a"]
    process.terminate()
    assert bench.finish(process)[0] == 130


def test_an_adopted_worker_keeps_its_card_and_is_named_by_it(bench):
    gate = bench.folder / "gate"
    bench.plan({"a": [], "b": []}, a={"gate": str(gate)})
    first = bench.execute(devices={"gpus": [0]})
    assert wait_for(lambda: bench.told()["begin", "a"] == 1)
    first.kill()
    first.wait()
    (worker,) = bench.workers()
    text = leases.describe(ONE)
    assert f"process {worker} makes TRIVIAL/a-" in text
    assert text.endswith(f"in {bench.store.root}")
    second = bench.execute(devices=AUTO)
    assert wait_for(lambda: bench.told()["end", "b"] == 1)
    assert leases.holder(ONE)["pid"] == worker
    gate.touch()
    code, events = bench.finish(second)
    assert code == 0
    assert [event["place"] for event in of_kind(events, "step_started")] == ["gpu 1"]
    assert [event["place"] for event in of_kind(events, "step_adopted")] == ["gpu 0"]
    assert leases.holder(ONE) is None


def test_a_card_is_given_on_only_when_its_memory_is_free(bench, machine):
    gate = bench.folder / "gate"
    bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    process = bench.execute(devices={"gpus": [0]})
    assert wait_for(lambda: bench.told()["begin", "a"] == 1)
    machine.show(card("GPU-aaaa-1", memory_used=5 * GIB), B)
    gate.touch()
    assert bench.happened("step_done")
    assert not wait_for(lambda: bench.told()["begin", "b"], 1.5)
    machine.show(A, B)
    assert bench.finish(process)[0] == 0


def test_more_processes_than_cards_are_refused(bench):
    from cdpo.engine.local.engine import LocalEngine

    plan = bench.plan({"a": []})
    devices = Devices.model_validate({"pipelines": {"TRIVIAL": {"processes": 3}}})
    with pytest.raises(UsageError, match="processes: 3 need a GPU each, and 2 can be used here"):
        LocalEngine(bench.store, devices, modules={}).run(plan)
