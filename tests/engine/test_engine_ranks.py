"""Steps of several processes. Starting torchrun takes seconds, so one test goes through all the deaths."""

import os
import signal
from pathlib import Path

import pytest
from engine_bench import of_kind, wait_for

from cdpo.engine.ranks import rank
from cdpo.errors import StepError
from cdpo.step import Device
from cdpo.store import locks

TWO = {"pipelines": {"TRIVIAL": {"processes": 2}}}


def of_module(bench, module):
    """Pids below this store of `python -m module`."""
    found = []
    for pid in bench.workers():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if command[command.index("-m") + 1] == module:
            found.append(pid)
    return found


@pytest.mark.slow
def test_kill_9_of_worker_rank_and_supervisor_of_a_two_process_step(bench):
    gate = bench.folder / "gate"
    plan = bench.plan({"a": []}, a={"gate": str(gate)})
    key = next(iter(plan.steps))

    def begin(times):
        process = bench.execute(devices=TWO)
        assert wait_for(lambda: bench.told()["begin", "a"] == 2 * times, 60), bench.told()
        assert locks.is_held(bench.store.alive_path(key))
        ranks = of_module(bench, "cdpo.engine.ranks.rank")
        assert len(ranks) == 2
        return process, ranks

    # the worker: the launcher and both ranks die with it, though they have sessions of their own
    process, _ = begin(1)
    (worker,) = of_module(bench, "cdpo.engine.worker")
    os.kill(worker, signal.SIGKILL)
    code, events = bench.finish(process)
    assert code == 1
    assert "SIGKILL" in of_kind(events, "step_failed")[0]["reason"]
    assert bench.none_left(3)
    assert wait_for(lambda: not bench.store.is_locked(key), 1)
    # a rank: the step fails and the other rank goes with it
    process, ranks = begin(2)
    os.kill(ranks[0], signal.SIGKILL)
    code, events = bench.finish(process)
    assert code == 1
    assert "a rank was killed" in of_kind(events, "step_failed")[0]["reason"]
    assert bench.none_left(3)
    # the supervisor: everything goes on and is adopted
    process, _ = begin(3)
    process.kill()
    process.wait()
    second = bench.execute(devices=TWO)
    assert bench.happened("step_adopted")
    gate.touch()
    code, events = bench.finish(second)
    assert code == 0
    assert of_kind(events, "step_adopted")
    assert bench.told()["begin", "a"] == 6
    assert bench.told()["end", "a"] == 2
    assert (bench.store.find(key) / "out" / "value.txt").read_text() == "a\n"
    assert bench.none_left(3)


def test_a_rank_that_lost_its_launcher_does_nothing(bench, monkeypatch):
    bench.plan({"a": []}, a={"raise": "boom"})
    bench.run()
    (work,) = (bench.store.root / "work").iterdir()
    monkeypatch.setattr(rank, "die_with_parent", lambda: None)
    # whoever its parent is: not itself
    monkeypatch.setenv("CDPO_LAUNCHER", str(os.getpid()))
    told = bench.told()
    assert rank.main(work) == 1
    assert bench.told() == told


def test_a_launcher_that_starts_fewer_processes_is_found_out(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(StepError, match="asks for 2 processes and the launcher started 1"):
        rank.check(Device(processes=2, distributed_type="MULTI_CPU"))


@pytest.mark.slow
def test_ctrl_c_ends_all_ranks(bench):
    bench.plan({"a": []}, a={"gate": str(bench.folder / "gate")})
    process = bench.execute(devices=TWO)
    assert wait_for(lambda: bench.told()["begin", "a"] == 2, 60)
    process.send_signal(signal.SIGINT)
    assert bench.finish(process)[0] == 130
    assert bench.none_left(3)


@pytest.mark.slow
def test_another_kind_of_parallelism_is_found_out(bench):
    bench.plan({"a": []})
    devices = {"pipelines": {"TRIVIAL": {"processes": 2, "distributed_type": "MULTI_GPU"}}}
    code, events = bench.run(devices=devices)
    assert code == 1
    reason = of_kind(events, "step_failed")[0]["reason"]
    assert "asks for MULTI_GPU on 2 processes, and accelerate found MULTI_CPU" in reason


def test_fsdp_is_refused_on_a_cpu():
    # accelerate would run plain data parallelism, without a word
    with pytest.raises(StepError, match="FSDP needs GPUs"):
        rank.check(Device(processes=2, distributed_type="FSDP", fsdp_version=2))


@pytest.mark.slow
def test_accelerate_that_falls_back_to_one_process_is_found_out(bench):
    config = bench.folder / "cpu.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_machines: 1\n"
    )
    bench.plan({"a": []})
    devices = {"pipelines": {"TRIVIAL": {"processes": 2, "accelerate_config": str(config)}}}
    code, events = bench.run(devices=devices)
    assert code == 1
    assert "the launcher started 1" in of_kind(events, "step_failed")[0]["reason"]
