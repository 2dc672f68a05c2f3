"""A step that runs out of memory begins again once with half as many rows at once, in the same place."""

import pytest
from engine_bench import HERE, of_kind, wait_for

from cdpo.errors import OutOfMemory
from cdpo.memory import at_once

MODULES = {"HUNGRY": str(HERE / "hungry.py")}
TORCH_CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."


def hungry(bench, **params):
    return bench.plan({"a": []}, a={"pipeline": "HUNGRY", **params})


def test_half_as_many_rows_fit(bench) -> None:
    plan = hungry(bench, rows=8, fit=4)
    code, events = bench.run(modules=MODULES)
    assert code == 0
    (key,) = plan.steps
    manifest = bench.store.manifest(bench.store.find(key))
    assert manifest["summary"]["rows"] == 4
    assert manifest["out_of_memory"]["rows"] == 8
    assert manifest["device"]["halved"] is True
    assert manifest["attempt"] == 1
    (note,) = of_kind(events, "note")
    assert note["text"].startswith("out of memory with 8 rows at once")
    assert note["text"].endswith("it begins again with 4, from its last checkpoint")
    # the process stayed the same one, and so did the lock and the log
    (started,) = of_kind(events, "step_started")
    assert manifest["summary"]["pid"] == started["pid"]
    assert bench.told() == {("begin", "a"): 2, ("end", "a"): 1}


def test_it_is_locked_all_the_time(bench) -> None:
    """What a process leaves open when it becomes another one is closed, but for the step's lock and its GPUs."""
    gate = bench.folder / "gate"
    plan = hungry(bench, rows=8, fit=4, gate=str(gate))
    running = bench.execute(modules=MODULES)
    assert wait_for(lambda: bench.told()[("begin", "a")] == 2)
    (key,) = plan.steps
    assert bench.store.is_locked(key)
    assert bench.store.lock(key) is None
    gate.touch()
    assert bench.finish(running)[0] == 0


def test_the_second_time_it_has_failed(bench) -> None:
    hungry(bench, rows=8, fit=3)
    code, events = bench.run(modules=MODULES)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["reason"].startswith("out of memory with 4 rows at once")
    assert "lora: true" in failed["reason"]
    assert bench.told()[("begin", "a")] == 2
    # another execute tries as the first one did
    assert bench.run(modules=MODULES)[0] == 1
    assert bench.told()[("begin", "a")] == 4


CANNOT = [{"rows": 1, "fit": 0}, {"rows": 8, "fit": 4, "splits": False}]


@pytest.mark.parametrize("params", CANNOT, ids=["one", "whole"])
def test_what_cannot_be_halved_has_failed_at_once(bench, params) -> None:
    hungry(bench, **params)
    code, events = bench.run(modules=MODULES)
    assert code == 1
    assert of_kind(events, "step_failed")[0]["reason"].startswith("out of memory")
    assert bench.told()[("begin", "a")] == 1


@pytest.mark.parametrize(("said", "begun"), [(TORCH_CPU, 2), ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED", 2), ("no", 1)])
def test_what_allocators_say_is_understood(bench, said: str, begun: int) -> None:
    hungry(bench, rows=8, fit=8, said=said)
    assert bench.run(modules=MODULES)[0] == 1
    assert bench.told()[("begin", "a")] == begun


def test_where_all_rows_must_go_at_once_fewer_samples_are_no_way_out() -> None:
    """A loss that compares the rows of a batch, on a policy that samples: half of either would be half of both."""
    with pytest.raises(OutOfMemory) as caught, at_once(None), at_once(64):
        raise MemoryError
    assert caught.value.rows is None
    with pytest.raises(OutOfMemory) as caught, at_once(8), at_once(64):
        raise MemoryError
    assert caught.value.rows == 64
    with pytest.raises(ValueError, match="something else"), at_once(8):
        raise ValueError("something else")


@pytest.mark.slow
def test_a_rank_without_memory_halves_the_rows_of_all(bench) -> None:
    plan = hungry(bench, rows=8, fit=4, rank=1)
    code, _ = bench.run(modules=MODULES, devices={"pipelines": {"HUNGRY": {"processes": 2}}})
    assert code == 0
    (key,) = plan.steps
    assert bench.store.manifest(bench.store.find(key))["summary"]["rows"] == 4
    assert bench.told()[("begin", "a")] == 4
    assert bench.none_left()
