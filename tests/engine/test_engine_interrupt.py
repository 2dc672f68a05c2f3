"""Ctrl+C, SIGTERM, stop, and workers that outlive their execution."""

import os
import signal

from engine_bench import of_kind, wait_for

from cdpo.engine.status import status
from cdpo.engine.stop import stop

GATED = {"a": [], "b": ["a"]}


def gated(bench, **more):
    gate = bench.folder / "gate"
    return bench.plan(GATED, a={"gate": str(gate), **more}), gate


def states(bench, plan):
    return {each["name"]: each["state"] for each in status(plan, bench.store)}


def begun(bench, name="a", times=1):
    return wait_for(lambda: bench.told()["begin", name] == times)


def test_ctrl_c_stops_the_workers_and_leaves_a_resumable_state(bench):
    plan, gate = gated(bench)
    process = bench.execute()
    assert begun(bench)
    process.send_signal(signal.SIGINT)
    code, events = bench.finish(process)
    assert code == 130
    assert events[-1]["interrupted"]
    assert not of_kind(events, "step_failed")
    assert bench.none_left()
    assert states(bench, plan) == {"a": "waiting", "b": "waiting"}
    gate.touch()
    assert bench.run()[0] == 0
    assert states(bench, plan) == {"a": "done", "b": "done"}


def test_sigterm_is_like_ctrl_c(bench):
    gated(bench)
    process = bench.execute()
    assert begun(bench)
    process.terminate()
    assert bench.finish(process)[0] == 130
    assert bench.none_left()


def test_the_second_ctrl_c_kills_a_worker_that_will_not_stop(bench):
    plan, _ = gated(bench, deaf=True)
    process = bench.execute()
    assert begun(bench)
    process.send_signal(signal.SIGINT)
    assert bench.happened("note")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _ = bench.finish(process)
    assert code == 130
    assert bench.none_left()
    assert states(bench, plan)["a"] == "waiting"


def test_a_worker_outlives_its_execution_and_is_adopted(bench):
    plan, gate = gated(bench)
    process = bench.execute()
    assert begun(bench)
    assert states(bench, plan)["a"] == "running"
    process.kill()
    process.wait()
    assert states(bench, plan)["a"] == "adopted"
    (worker,) = bench.workers()
    second = bench.execute()
    assert bench.happened("step_adopted")
    gate.touch()
    code, events = bench.finish(second)
    assert code == 0
    (adopted,) = of_kind(events, "step_adopted")
    assert adopted["pid"] == worker
    assert bench.told()["begin", "a"] == 1
    assert [event["name"] for event in of_kind(events, "step_done")] == ["a", "b"]


def test_an_orphan_publishes_with_nobody_watching(bench):
    plan, gate = gated(bench)
    process = bench.execute()
    assert begun(bench)
    process.kill()
    gate.touch()
    assert bench.none_left()
    assert states(bench, plan) == {"a": "done", "b": "waiting"}
    code, events = bench.run()
    assert code == 0
    assert events[0]["cached"] == 1
    assert bench.told()["begin", "a"] == 1


def test_an_adopted_worker_that_dies_is_run_again_once(bench):
    _, gate = gated(bench)
    process = bench.execute()
    assert begun(bench)
    process.kill()
    process.wait()
    second = bench.execute()
    assert bench.happened("step_adopted")
    gate.touch()
    # a touched gate and a kill race; both ends are right as long as the step is finished once
    for pid in bench.workers():
        os.kill(pid, signal.SIGKILL)
    code, _ = bench.finish(second)
    assert code == 0
    assert bench.told()["end", "b"] == 1


def test_two_executions_share_a_store(bench):
    shape = {name: [] for name in "abcdefgh"}
    bench.plan(shape, **{name: {"seconds": 0.1} for name in shape})
    both = [bench.execute(), bench.execute()]
    assert [bench.finish(process)[0] for process in both] == [0, 0]
    assert set(bench.told().values()) == {1}


def test_a_step_that_fails_under_another_execution_is_not_tried_again(bench):
    gate = bench.folder / "gate"
    bench.plan({"a": []}, a={"gate": str(gate), "late": "boom"})
    first = bench.execute()
    assert begun(bench)
    second = bench.execute()
    assert bench.happened("step_adopted")
    gate.touch()
    assert bench.finish(first)[0] == 1
    code, events = bench.finish(second)
    assert code == 1
    assert of_kind(events, "step_failed")[0]["reason"] == "ValueError: boom"
    assert bench.told()["begin", "a"] == 1


def test_stop_ends_executions_and_workers(bench):
    plan, _ = gated(bench)
    process = bench.execute()
    assert begun(bench)
    assert stop(bench.store) == [next(iter(plan.steps))]
    assert bench.finish(process)[0] == 130
    assert bench.none_left(0.5)
    assert stop(bench.store) == []


def test_stop_ends_orphans_too(bench):
    _, _ = gated(bench, deaf=True)
    process = bench.execute()
    assert begun(bench)
    process.kill()
    process.wait()
    stop(bench.store, grace=0.3)
    assert bench.none_left(0.5)


def test_a_reader_that_goes_away_does_not_stop_the_work(bench):
    plan, gate = gated(bench)
    process = bench.execute()
    process.stdout.readline()
    process.stdout.close()
    assert begun(bench)
    gate.touch()
    process.wait(30)
    assert states(bench, plan) == {"a": "done", "b": "done"}
