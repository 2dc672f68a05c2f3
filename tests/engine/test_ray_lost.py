"""What a Ray cluster can lose: the actor that owns the jobs, a node, the head; and what the actor knows of its jobs."""

import os
import signal
import subprocess
import sys

import pytest
from engine_bench import HERE, of_kind, wait_for
from ray_room import Room, gone, notes, parent_of

from cdpo.engine.batch import job
from cdpo.engine.batch.backend import Unreachable
from cdpo.files import read_json_lines

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


@pytest.mark.slow
def test_a_killed_actor_is_started_again_and_goes_on(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan({**DIAMOND, "x": [], "y": ["x"]}, b={"gate": str(gate)}, x={"raise": "no"})
    execution = room.execute()
    assert room.begun("b")
    # a and c published: a step that has only said its last would rightly be made again
    assert wait_for(lambda: len(room.bench.store.finished()) == 2 and room.bench.happened("step_failed"), 60)
    worker = room.worker("b")
    os.kill(room.actor(), signal.SIGKILL)
    assert room.begun("b", 2)
    assert gone(worker), "two workers of one step"
    gate.touch()
    code, events = room.finish(execution)
    assert code == 1
    assert [event["name"] for event in of_kind(events, "step_failed")] == ["x"]
    told = room.bench.told()
    assert told["begin", "a"] == told["begin", "c"] == told["begin", "d"] == told["begin", "x"] == 1
    assert told["begin", "y"] == 0
    assert len(of_kind(events, "step_queued")) == 6, "the actor itself remembers what it was given"


@pytest.mark.slow
def test_an_actor_that_is_killed_for_good_takes_its_jobs_along_and_they_are_queued_again(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan(DIAMOND, a={"gate": str(gate)})
    both = [room.execute(), room.execute()]
    assert room.begun("a")
    assert room.bench.happened("step_queued", 8)
    worker = room.worker("a")
    room.kill_actor_for_good()
    assert room.begun("a", 2)
    assert gone(worker), "two workers of one step"
    gate.touch()
    ended = [room.finish(each) for each in both]
    assert [code for code, _ in ended] == [0, 0]
    assert all(room.bench.told()["begin", name] == 1 for name in "bcd")
    queued = [event for _, events in ended for event in of_kind(events, "step_queued")]
    assert sum(not event["found"] for event in queued) == 8, "each is submitted again by one of the two"


@pytest.mark.slow
def test_the_job_of_a_parent_that_failed_takes_down_its_own(room):
    plan = room.bench.plan({"a": [], "b": ["a"], "c": ["b"]}, a={"raise": "no"})
    backend, ids = room.backend(), []
    for step in plan.steps.values():
        parents = {parent: plan.steps[parent] for parent in step.parents}
        job.describe(room.bench.store, step, backend.devices, str(HERE / "trivial.py"), parents)
        ids.append(backend.submit(step, job.command(room.bench.store, step.key), ids[-1:]))
    assert wait_for(lambda: {each.kind for each in backend.look(ids).values()} == {"ended"}, 30)
    assert [each.orphaned for each in backend.look(ids).values()] == [False, True, True]
    late = backend.submit(step, job.command(room.bench.store, step.key), ids[:1])
    assert backend.look([late])[late].orphaned
    assert backend.living() == {}


@pytest.mark.slow
def test_a_job_is_taken_once_however_often_it_is_handed_in(room, tmp_path):
    plan = room.bench.plan({"a": []}, a={"gate": str(tmp_path / "gate")})
    (step,) = plan.steps.values()
    backend = room.backend()
    job.describe(room.bench.store, step, backend.devices, str(HERE / "trivial.py"), {})
    handed = []
    asked = backend._ask
    backend._ask = lambda *request: handed.append(request) or asked(*request)
    backend.submit(step, job.command(room.bench.store, step.key), [])
    asked(*handed[0])
    (tmp_path / "gate").touch()
    assert wait_for(lambda: backend.living() == {}, 30)
    assert room.bench.told()["begin", "a"] == 1


@pytest.mark.slow
def test_an_actor_without_work_leaves(room):
    code = f"""
import ray, time
from cdpo.engine.batch.ray_jobs import Jobs
ray.init({room.cluster.address!r}, namespace="cdpo", log_to_driver=False)
actor = ray.remote(Jobs).options(name="idle", lifetime="detached", num_cpus=0, max_restarts=-1)
actor = actor.remote({str(room.bench.store.root)!r}, 1.0)
ray.get(actor.living.remote())
time.sleep(4)
try:
    ray.get_actor("idle")
except ValueError:
    print("left")
"""
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "left\n", done.stderr


@pytest.mark.slow
def test_a_node_is_lost_and_its_job_goes_on_elsewhere(bench, own_cluster, tmp_path):
    """The node came after the submitter had gone."""
    gate = tmp_path / "gate"
    bench.plan({"a": [], "b": [], "c": ["a", "b"]}, a={"gate": str(gate)}, b={"gate": str(gate)})
    room = Room(bench, own_cluster)
    first = room.execute()
    assert wait_for(lambda: sum(bench.told()["begin", name] for name in "ab") == 1, 60)
    first.kill()
    first.wait()
    node = own_cluster.add_node()
    assert wait_for(lambda: sum(bench.told()["begin", name] for name in "ab") == 2, 60)
    (worker,) = [room.worker(name) for name in "ab" if os.getsid(parent_of(room.worker(name))) == node.pid]
    own_cluster.kill(node)
    assert wait_for(lambda: gone(worker), 20)
    gate.touch()
    assert wait_for(lambda: len(bench.store.finished()) == 3, 120)


@pytest.mark.slow
def test_the_head_is_gone_and_comes_back(bench, own_cluster, tmp_path):
    room = Room(bench, own_cluster)
    bench.plan({"a": [], "b": ["a"]}, a={"gate": str(tmp_path / "gate")})
    execution = room.execute()
    assert room.begun("a")
    worker = room.worker("a")
    own_cluster.kill(own_cluster.head)
    assert wait_for(lambda: notes(read_json_lines(bench.store.events), "ray start --head"), 60)
    assert wait_for(lambda: gone(worker), 60), "the job outlived its cluster"
    with pytest.raises(Unreachable, match="ray start --head"):
        room.backend().living()
    assert execution.poll() is None
    (tmp_path / "gate").touch()
    own_cluster.start()
    code, events = room.finish(execution)
    assert code == 0
    assert not of_kind(events, "step_failed")
    assert len(notes(events, "ray start --head")) == 1
