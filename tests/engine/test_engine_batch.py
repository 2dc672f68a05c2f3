"""Plans on a batch system, here the smallest one: a process that starts queued commands when their parents ended well.

Its queue is a folder, so that it outlives whoever submits to it, as SLURM and Ray do.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from engine_bench import HERE, of_kind, wait_for

from cdpo.engine.batch import job
from cdpo.engine.watch import proc
from cdpo.files import read_json_lines
from cdpo.store.claims import Owner

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


@pytest.fixture
def system(bench):
    """The batch system itself; killed at the end with what it started."""
    room = bench.folder / "queue"
    room.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    process = subprocess.Popen([sys.executable, str(HERE / "queueing.py"), str(room)], env=environment)
    yield process
    process.kill()
    process.wait()


def test_a_plan_in_its_order(bench, system):
    bench.plan(DIAMOND)
    code, events = bench.run(batch=True)
    assert code == 0
    assert {event["name"] for event in of_kind(events, "step_done")} == set(DIAMOND)
    assert [event["found"] for event in of_kind(events, "step_queued")] == [False] * 4
    # also those that were over before anybody looked
    assert sorted(event["name"] for event in of_kind(events, "step_started")) == sorted(DIAMOND)
    final = next(path for path in bench.store.finished().values() if path.name.startswith("d-"))
    assert (final / "out" / "value.txt").read_text() == "a\nb\na\nc\nd\n"
    code, events = bench.run(batch=True)
    assert code == 0
    assert not of_kind(events, "step_queued")


def test_what_lives_is_found_and_not_submitted_twice(bench, system, tmp_path):
    gate = tmp_path / "gate"
    bench.plan(DIAMOND, a={"gate": str(gate)})
    first = bench.execute(batch=True)
    assert wait_for(lambda: bench.told()["begin", "a"])
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = bench.execute(batch=True)
    assert bench.happened("step_queued", 8)
    gate.touch()
    code, events = bench.finish(second)
    assert code == 0
    assert all(event["found"] for event in of_kind(events, "step_queued"))
    assert all(bench.told()["begin", name] == 1 for name in DIAMOND)


def test_two_executions_submit_each_job_once(bench, system):
    bench.plan(DIAMOND, a={"seconds": 0.5})
    (bench.folder / "queue" / "slow").touch()
    both = [bench.execute(batch=True)]
    assert bench.happened("step_queued")
    both.append(bench.execute(batch=True))
    assert [bench.finish(each)[0] for each in both] == [0, 0]
    assert all(bench.told()["begin", name] == 1 for name in DIAMOND)
    assert len(list((bench.folder / "queue").glob("*.job"))) == 4


def test_a_failure_comes_with_its_log_and_blocks_what_needs_it(bench, system):
    bench.plan({**DIAMOND, "e": []}, b={"raise": "no such thing"})
    code, events = bench.run(batch=True)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert "no such thing" in failed["reason"]
    assert any("no such thing" in line for line in failed["tail"])
    (blocked,) = of_kind(events, "step_blocked")
    assert blocked["name"] == "d"
    assert {event["name"] for event in of_kind(events, "step_done")} == {"a", "c", "e"}


def test_a_killed_worker_is_a_failure_and_the_next_execution_makes_the_rest(bench, system, tmp_path):
    gate = tmp_path / "gate"
    bench.plan(DIAMOND, b={"gate": str(gate)})
    execution = bench.execute(batch=True)
    assert wait_for(lambda: bench.told()["begin", "b"] and bench.told()["end", "c"])
    pid = next(int(line.split()[2]) for line in bench.diary.read_text().splitlines() if line.startswith("begin b"))
    os.kill(pid, signal.SIGKILL)
    code, events = bench.finish(execution)
    assert code == 1
    assert of_kind(events, "step_failed")[0]["name"] == "b"
    gate.touch()
    code, _ = bench.run(batch=True)
    assert code == 0
    assert bench.told()["begin", "a"] == bench.told()["begin", "c"] == 1


def test_what_a_killed_worker_left_running_is_ended_by_the_next_attempt(bench, system, tmp_path):
    gate = tmp_path / "gate"
    bench.plan({"a": []}, a={"leave": "daemon", "gate": str(gate)})
    execution = bench.execute(batch=True)
    assert wait_for(lambda: len(bench.workers()) == 2)
    (key,) = bench.store.working()
    os.kill(proc(bench.store.work(key))["pid"], signal.SIGKILL)
    assert bench.finish(execution)[0] == 1
    (left,) = bench.workers()
    # the daemon is a copy of the worker, and so holds the lock of its step
    assert bench.store.is_locked(key)
    gate.touch()
    execution = bench.execute(batch=True)
    assert wait_for(lambda: left not in bench.workers())
    assert bench.finish(execution)[0] == 0
    assert bench.told()["begin", "a"] == 2


def test_who_leaves_leaves_the_jobs_alone(bench, system, tmp_path):
    gate = tmp_path / "gate"
    bench.plan(DIAMOND, a={"gate": str(gate)})
    execution = bench.execute(batch=True)
    assert wait_for(lambda: bench.told()["begin", "a"])
    execution.send_signal(signal.SIGINT)
    code, events = bench.finish(execution)
    assert code == 130
    assert "4 jobs are queued or run" in of_kind(events, "note")[-1]["text"]
    gate.touch()
    assert wait_for(lambda: len(bench.store.finished()) == 4)


def test_an_unreachable_system_ends_nothing(bench, system, tmp_path):
    gate = tmp_path / "gate"
    bench.plan({"a": []}, a={"gate": str(gate)})
    execution = bench.execute(batch=True)
    assert wait_for(lambda: bench.told()["begin", "a"])
    (bench.folder / "queue" / "unreachable").touch()
    assert wait_for(lambda: _notes(bench, "does not answer"))
    (bench.folder / "queue" / "unreachable").unlink()
    gate.touch()
    assert bench.finish(execution)[0] == 0
    assert len(_notes(bench, "does not answer")) == 1


def test_a_job_whose_parent_job_is_gone_is_queued_again(bench, system, tmp_path):
    gate = tmp_path / "gate"
    plan = bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    first = bench.execute(batch=True)
    assert wait_for(lambda: bench.told()["begin", "a"])
    first.kill()
    first.wait()
    pid = next(int(line.split()[2]) for line in bench.diary.read_text().splitlines() if line.startswith("begin a"))
    os.kill(pid, signal.SIGKILL)
    key = next(iter(plan.steps))
    assert wait_for(lambda: not bench.store.is_locked(key))
    gate.touch()
    code, _ = bench.run(batch=True)
    assert code == 0
    assert bench.told()["begin", "b"] == 1


def test_a_job_for_a_finished_step_makes_nothing(bench, system):
    plan = bench.plan({"a": []})
    assert bench.run(batch=True)[0] == 0
    assert subprocess.run(job.command(bench.store, next(iter(plan.steps))), check=False).returncode == 0
    assert bench.told()["begin", "a"] == 1
    assert not bench.store.working()


def test_a_job_whose_input_is_gone_says_so(bench, system):
    plan = bench.plan({"a": [], "b": ["a"]})
    assert bench.run(batch=True)[0] == 0
    for key in plan.steps:
        bench.store.discard(key)
    said = subprocess.run(job.command(bench.store, list(plan.steps)[1]), capture_output=True, text=True, check=False)
    assert said.returncode == 1
    assert "its input TRIVIAL/a-" in said.stderr
    assert "Traceback" not in said.stderr


def _notes(bench, text):
    return [each for each in read_json_lines(bench.store.events) if text in each.get("text", "")]


def test_the_jobs_file_names_all_that_a_job_needs(bench, system):
    plan = bench.plan({"a": []})
    assert bench.run(batch=True)[0] == 0
    described = json.loads(Path(bench.store.root / "jobs" / f"{next(iter(plan.steps))}.json").read_text())
    assert described["step"]["name"] == "a"
    assert described["devices"]["gpus"] == []


def test_a_step_that_an_ended_job_still_claims_is_freed(bench, system):
    """Its node went down, and from no other machine can that be seen; the batch system knows."""
    plan = bench.plan({"a": []}, a={"refuse": "no"})
    assert bench.run(batch=True)[0] == 1
    key = next(iter(plan.steps))
    lost = replace(Owner.here(), host="node7", boot="b", machine="m", job="0001")
    lock = bench.store.lock_path(key)
    lock.unlink(missing_ok=True)
    lock.mkdir()
    (lock / lost.name).touch()
    code, events = bench.run(batch=True)
    assert code == 1
    assert "no" in of_kind(events, "step_failed")[0]["reason"]
    notes = [each["text"] for each in read_json_lines(bench.store.events) if each["event"] == "note"]
    assert notes == ["freed from job 0001: the batch system says that it is over exit 1"]
