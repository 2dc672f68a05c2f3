"""Steps that are cut into parts, on this machine and on a batch system: order, failure, kills, what is left."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from engine_bench import HERE, TRIVIAL, of_kind, wait_for

from cdpo.engine.parts import earlier
from cdpo.engine.status import status
from cdpo.files import read_json
from cdpo.plan.graph import Plan
from cdpo.plan.shards import cut

MODULES = {"TRIVIAL": TRIVIAL, "GEN": TRIVIAL}
#: a step that can be cut between two that cannot
SHAPE = {"a": [], "b": ["a"], "c": ["b"]}
CUT = {"modules": MODULES, "devices": {"pipelines": {"GEN": {"shards": 3}}, "cpu_workers": 3}}
PARTS = ["b_1of3", "b_2of3", "b_3of3"]


@pytest.fixture(params=["local", "batch"])
def options(request, bench):
    if request.param == "local":
        yield CUT
        return
    room = bench.folder / "queue"
    room.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    process = subprocess.Popen([sys.executable, str(HERE / "queueing.py"), str(room)], env=environment)
    yield CUT | {"batch": True}
    process.kill()
    process.wait()


def value(bench, name: str) -> list[str]:
    path = next(path for path in bench.store.finished().values() if path.name.startswith(f"{name}-"))
    return (path / "out" / "value.txt").read_text().split()


def test_parts_are_made_before_the_step_that_joins_them_and_then_go(bench, options):
    bench.plan(SHAPE, b={"pipeline": "GEN"})
    code, events = bench.run(**options)
    assert code == 0
    done = [event["name"] for event in of_kind(events, "step_done")]
    assert done[0] == "a"
    assert sorted(done[1:4]) == PARTS
    assert done[4:] == ["b", "c"]
    # each part read what the step itself reads
    assert value(bench, "b") == ["a", *(word for part in PARTS for word in ("a", part)), "b"]
    assert wait_for(lambda: sorted(path.name[0] for path in bench.store.finished().values()) == ["a", "b", "c"])
    again, events = bench.run(**options)
    assert (again, of_kind(events, "plan")[0]["run"]) == (0, 0)
    # a step that is there stays whole, however many devices there are
    other = {**options, "devices": {"pipelines": {"GEN": {"shards": 5}}}}
    assert of_kind(bench.run(**other)[1], "plan")[0]["run"] == 0


def test_a_part_that_fails_blocks_the_step_and_the_others_stay(bench, options):
    bench.plan(SHAPE, b={"pipeline": "GEN", "gate": str(bench.folder / "gate"), "late": "no"})
    process = bench.execute(**options)
    assert wait_for(lambda: all(bench.told()["begin", part] for part in PARTS))
    (bench.folder / "gate").touch()
    code, events = bench.finish(process)
    assert code == 1
    assert sorted(event["name"] for event in of_kind(events, "step_failed")) == PARTS
    assert sorted(event["name"] for event in of_kind(events, "step_blocked")) == ["b", "c"]
    plan = Plan.from_json(json.loads((bench.folder / "plan.json").read_text()))
    told = [(each["name"], each["state"]) for each in status(plan, bench.store)]
    assert told == [("a", "done"), *((part, "failed") for part in PARTS), ("b", "blocked"), ("c", "blocked")]


def at_the_gate(bench):
    """An execution whose parts all wait for a file: that file, and the process."""
    gate = bench.folder / "gate"
    bench.plan(SHAPE, b={"pipeline": "GEN", "gate": str(gate)})
    first = bench.execute(**CUT)
    assert wait_for(lambda: all(bench.told()["begin", part] for part in PARTS))
    return gate, first


def test_parts_outlive_the_supervisor_and_are_made_once(bench):
    gate, first = at_the_gate(bench)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = bench.execute(**CUT)
    assert bench.happened("step_adopted", 3)
    gate.touch()
    code, _ = bench.finish(second)
    assert code == 0
    assert all(bench.told()["begin", name] == 1 for name in ["a", *PARTS, "b", "c"])


def test_another_cut_is_told_of_what_the_first_one_made(bench):
    gate, first = at_the_gate(bench)
    first.send_signal(signal.SIGKILL)
    first.wait()
    for pid in bench.workers():
        os.kill(pid, signal.SIGKILL)
    assert bench.none_left()
    gate.touch()
    code, _ = bench.run(modules=MODULES, devices={"pipelines": {"GEN": {"shards": 2}}})
    assert code == 0
    # parts of the new cut read what the old one has, and so does the whole; what they are joined of is no "earlier"
    told = [read_json(path / "manifest.json") for path in bench.store.finished().values()]
    assert {each["name"] for each in told} == {"a", "b", "c"}
    described = read_json(next(path for path in bench.store.finished().values() if "b-" in path.name) / "manifest.json")
    assert "earlier" not in described["inputs"]
    assert bench.told()["heard", "b_1of2"] == bench.told()["heard", "b"] == 3


@pytest.mark.parametrize("shards", [2, 1])
def test_workers_that_a_killed_execution_left_at_another_cut_are_ended(bench, shards):
    gate, first = at_the_gate(bench)
    first.send_signal(signal.SIGKILL)
    first.wait()
    left = bench.workers()
    assert len(left) == len(PARTS)
    second = bench.execute(modules=MODULES, devices={"pipelines": {"GEN": {"shards": shards}}})
    assert wait_for(lambda: not set(left) & set(bench.workers()))
    gate.touch()
    code, events = bench.finish(second)
    assert code == 0
    assert "ended 3 workers that an earlier execute left at another cut" in str(events)
    assert {each["name"] for each in map(bench.store.manifest, bench.store.finished().values())} == {"a", "b", "c"}


def test_workers_at_another_cut_whose_execution_lives_are_let_be(bench):
    gate, first = at_the_gate(bench)
    left = bench.workers()
    second = bench.execute(modules=MODULES, devices={"pipelines": {"GEN": {"shards": 2}}})
    assert wait_for(lambda: bench.told()["begin", "b_2of2"])
    assert set(left) <= set(bench.workers())
    gate.touch()
    assert [bench.finish(each)[0] for each in (first, second)] == [0, 0]


def test_a_damaged_part_of_another_cut_is_not_gone_on_from(bench):
    gate = bench.folder / "gate"
    plan = bench.plan(SHAPE, b={"pipeline": "GEN", "gate": str(gate)})
    first = bench.execute(**CUT)
    assert wait_for(lambda: all(bench.told()["begin", part] for part in PARTS))
    first.send_signal(signal.SIGKILL)
    first.wait()
    gate.touch()
    # the parts end well by themselves, and nobody joins them
    assert wait_for(lambda: len(bench.store.finished()) == 4 and not bench.store.working())
    steps = cut(plan, lambda pipeline: 2, set(plan.steps)).steps.values()
    asked = [step for step in steps if step.pipeline == "GEN"]
    parts = sorted(path for path in bench.store.finished().values() if path.name.startswith("b_"))
    whole = [str(path / "out") for path in parts]
    assert [earlier(bench.store, step) for step in asked] == [whole] * 3
    value = parts[1] / "out" / "value.txt"
    value.write_text(value.read_text().replace("a", "c", 1))
    assert [earlier(bench.store, step) for step in asked] == [[whole[0], whole[2]]] * 3
    # of its own cut a part is told nothing
    same = [step for step in cut(plan, lambda pipeline: 3, set(plan.steps)).steps.values() if step.pipeline == "GEN"]
    assert [earlier(bench.store, step) for step in same] == [[]] * 4


def test_auto_is_one_for_each_place(bench):
    bench.plan(SHAPE, b={"pipeline": "GEN"})
    devices = {"pipelines": {"GEN": {"shards": "auto"}}, "cpu_workers": 2}
    code, events = bench.run(modules=MODULES, devices=devices)
    assert code == 0
    assert [event["name"] for event in of_kind(events, "step_done")][1:3] in (
        ["b_1of2", "b_2of2"],
        ["b_2of2", "b_1of2"],
    )
    assert not Path(bench.store.root / "work").exists() or not list((bench.store.root / "work").iterdir())
