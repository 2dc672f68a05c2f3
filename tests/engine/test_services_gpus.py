"""The GPUs of servers: leased as those of steps are, which then need none, and given on when their memory is free."""

import os

import pytest
from engine_bench import TRIVIAL, of_kind, wait_for
from fake_gpus import GIB, A, B, card
from serving import ASKING, Serving, kill

from cdpo.config.devices import Devices
from cdpo.engine.gpus import leases
from cdpo.engine.gpus.nvml import list_gpus
from cdpo.engine.gpus.slots import Slots
from cdpo.engine.local.engine import LocalEngine
from cdpo.errors import UsageError

AUTO = {"gpus": "auto"}


@pytest.fixture
def serving(tmp_path, machine):
    bench = Serving(tmp_path)
    yield bench
    bench.close()


def test_on_a_machine_of_one_gpu_the_server_has_it_and_not_the_step(serving, machine):
    machine.show(A)
    serving.served_plan("a", rows=6, pause=0.2)
    process = serving.ask("--diary", str(serving.diary), devices=AUTO)
    keeper = serving.service() and serving.room().state()["keeper"]["pid"]
    (gpu,) = list_gpus()
    assert f"process {keeper} serves model in {serving.store.root}" in leases.describe(gpu)
    machine.show(card("GPU-aaaa-1", memory_used=9 * GIB))
    code, events = serving.finish(process)
    assert code == 0, events
    assert [event["place"] for event in of_kind(events, "step_started")] == ["cpu 0"]
    assert serving.diary.read_text().splitlines()[1].split()[2] == "GPU-aaaa-1"
    # the memory of the server is not free yet, and so its GPU is nobody else's
    assert not wait_for(lambda: leases.holder(gpu) is None, 2.0)
    machine.show(A)
    assert wait_for(lambda: leases.holder(gpu) is None, 5.0)


def test_a_server_waits_for_a_gpu_that_another_has_and_its_step_says_so(serving, machine):
    machine.show(A)
    (gpu,) = list_gpus()
    held = leases.lease(gpu)
    serving.served_plan("a")
    process = serving.ask(devices=AUTO)
    assert wait_for(lambda: serving.service_state() == "waiting", 10)
    assert serving.happened("note")
    os.close(held)
    code, events = serving.finish(process)
    assert code == 0
    assert "its server: for a GPU: GPU 0: leased a moment ago" in of_kind(events, "note")[0]["text"]


@pytest.mark.slow
def test_steps_of_two_models_take_turns_on_one_gpu(serving, machine):
    machine.show(A)
    plan = serving.served_plan("a", "b", model={"a": "one", "b": "two"})
    code, events = serving.finish(serving.ask("--diary", str(serving.diary), devices=AUTO))
    assert code == 0, events
    assert serving.started() == 2
    assert {row["pid"] for row in serving.rows(next(iter(plan.steps)))}


@pytest.mark.slow
def test_a_killed_keeper_frees_its_gpu_for_the_next(serving, machine):
    machine.show(A)
    (key,) = serving.served_plan("a", rows=8, pause=0.2).steps
    process = serving.ask("--child", devices=AUTO)
    assert wait_for(lambda: serving.asked(key) > 1, 20)
    kill(serving.room().state()["keeper"]["pid"])
    code, events = serving.finish(process)
    assert code == 0, events
    assert len({row["pid"] for row in serving.rows(key)}) == 2


def test_served_steps_run_beside_those_with_a_gpu(serving, machine):
    """Neither kind waits for places of the other."""
    machine.show(A, B)
    gate = serving.folder / "gate"
    plan = serving.plan({"x": [], "y": [], "z": []}, **{name: {"gate": str(gate)} for name in "xyz"})
    plan.steps |= serving.served_plan("a").steps
    serving.write(plan)
    process = serving.ask(devices={**AUTO, "gpus": [0]}, also={"TRIVIAL": TRIVIAL})
    # its server waits for the only GPU, and another step for that, too
    assert wait_for(lambda: serving.service_state() == "waiting" and serving.told()["begin", "x"], 20)
    assert not serving.told()["begin", "y"]
    gate.touch()
    assert serving.finish(process)[0] == 0


def test_places_beside_the_gpus_are_as_many_as_cpu_workers(machine):
    slots = Slots(list_gpus(), workers=1)
    beside = slots.take(0)
    assert (beside.slot, beside.label, beside.environment()) == (2, "cpu 0", {"CUDA_VISIBLE_DEVICES": ""})
    assert slots.take(0) is None
    assert slots.take(2).label == "gpu 0,1"
    slots.give(beside)
    assert slots.take(0).slot == 2


def test_a_server_of_more_gpus_than_there_are_is_refused(serving, machine):
    plan = serving.served_plan("a")
    devices = Devices.model_validate({"services": {"ASK": {"server": "vllm", "processes": 3}}})
    with pytest.raises(UsageError, match="services: ASK: processes: 3 need a GPU each, and 2 can be used here"):
        LocalEngine(serving.store, devices, modules={"ASK": ASKING}).run(plan)
