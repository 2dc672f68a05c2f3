"""Plans on a real Ray: one that `ray start` starts for these tests, on ports and in a folder of its own.

What is killed here: whoever submitted, a step's worker, the Ray worker around it.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from engine_bench import HERE, of_kind, wait_for
from ray_room import gone, parent_of

from cdpo.engine.batch import job
from cdpo.engine.batch.engine import stop
from cdpo.files import read_json_lines
from tests.conftest import run_cdpo, write_project

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
TORTURE = {"TRIVIAL": str(HERE / "torture_step.py")}


@pytest.mark.slow
def test_a_plan_in_its_order(room):
    room.bench.plan(DIAMOND)
    code, events = room.run()
    assert code == 0
    assert [event["found"] for event in of_kind(events, "step_queued")] == [False] * 4
    final = next(path for path in room.bench.store.finished().values() if path.name.startswith("d-"))
    assert (final / "out" / "value.txt").read_text() == "a\nb\na\nc\nd\n"
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest["summary"]["visible"] == "", "no GPU for a step that asked for none"
    code, events = room.run()
    assert code == 0
    assert not of_kind(events, "step_queued")


@pytest.mark.slow
def test_the_submitter_is_killed_and_the_next_finds_its_jobs(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan(DIAMOND, a={"gate": str(gate)})
    first = room.execute()
    assert room.begun("a")
    first.kill()
    first.wait()
    second = room.execute()
    assert room.bench.happened("step_queued", 8)
    gate.touch()
    code, events = room.finish(second)
    assert code == 0
    assert all(event["found"] for event in of_kind(events, "step_queued"))
    assert all(room.bench.told()["begin", name] == 1 for name in DIAMOND)


@pytest.mark.slow
def test_the_jobs_need_nobody(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan(DIAMOND, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    execution.kill()
    execution.wait()
    time.sleep(1)
    gate.touch()
    assert wait_for(lambda: len(room.bench.store.finished()) == 4, 60)


@pytest.mark.slow
def test_who_leaves_leaves_the_jobs_alone(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan({"a": []}, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    execution.send_signal(signal.SIGINT)
    assert room.finish(execution)[0] == 130
    gate.touch()
    assert wait_for(lambda: len(room.bench.store.finished()) == 1, 60)


@pytest.mark.slow
def test_two_executions_submit_each_job_once(room):
    room.bench.plan(DIAMOND, a={"seconds": 1})
    both = [room.execute(), room.execute()]
    ended = [room.finish(each) for each in both]
    assert [code for code, _ in ended] == [0, 0]
    assert all(room.bench.told()["begin", name] == 1 for name in DIAMOND)
    queued = [event for _, events in ended for event in of_kind(events, "step_queued")]
    assert sum(not event["found"] for event in queued) == 4


@pytest.mark.slow
def test_a_failure_comes_with_its_log_and_blocks_what_needs_it(room):
    room.bench.plan({**DIAMOND, "e": []}, b={"raise": "no such thing"})
    code, events = room.run()
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert "no such thing" in failed["reason"]
    assert any("no such thing" in line for line in failed["tail"])
    assert [event["name"] for event in of_kind(events, "step_blocked")] == ["d"]
    assert {event["name"] for event in of_kind(events, "step_done")} == {"a", "c", "e"}
    assert room.bench.told()["begin", "b"] == 1
    assert room.backend().living() == {}


@pytest.mark.slow
def test_what_a_job_says_before_its_step_has_a_log(room, tmp_path):
    """Here: on a node that does not see the store."""
    gate = tmp_path / "gate"
    plan = room.bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    job.job_path(room.bench.store, list(plan.steps)[1]).unlink()
    gate.touch()
    code, events = room.finish(execution)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert "every node that runs steps must see the store" in failed["reason"]


@pytest.mark.slow
def test_a_killed_worker_is_a_failure_and_the_next_execution_makes_the_rest(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan(DIAMOND, b={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("b")
    assert wait_for(lambda: room.bench.told()["end", "c"], 60)
    os.kill(room.worker("b"), signal.SIGKILL)
    code, events = room.finish(execution)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert "SIGKILL" in failed["reason"]
    gate.touch()
    assert room.run()[0] == 0
    assert room.bench.told()["begin", "a"] == room.bench.told()["begin", "c"] == 1


@pytest.mark.slow
def test_a_killed_ray_worker_takes_its_job_along_and_ray_goes_on_from_the_checkpoint(room):
    diary = room.bench.diary
    room.bench.plan({"a": [], "b": ["a"]}, a={"units": 24, "unit_seconds": 0.1}, b={"units": 1, "unit_seconds": 0})
    execution = room.execute(modules=TORTURE)

    def units():
        return [line["unit"] for line in read_json_lines(diary) if line["step"] == "a" and line["what"] == "unit"]

    assert wait_for(lambda: diary.exists() and len(units()) >= 10, 60)
    (worker,) = [int(line["life"].split("-")[0]) for line in read_json_lines(diary) if line["what"] == "begin"]
    os.kill(parent_of(worker), signal.SIGKILL)
    assert wait_for(lambda: gone(worker), 5), "the job outlived its Ray worker"
    code, events = room.finish(execution)
    assert code == 0
    assert [event["attempt"] for event in of_kind(events, "step_started") if event["name"] == "a"] == [1, 2]
    computed = units()
    assert set(computed) == set(range(24))
    assert len(computed) <= 24 + 4, "more was lost than what came after the last checkpoint"
    assert not of_kind(events, "step_failed")


@pytest.mark.slow
def test_a_stopped_job_is_run_again(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    os.kill(room.worker("a"), signal.SIGTERM)
    assert room.begun("a", 2)
    gate.touch()
    assert room.finish(execution)[0] == 0


@pytest.mark.slow
def test_but_not_for_ever(room):
    room.bench.plan({"a": [], "b": ["a"]}, a={"exit": 143})
    code, events = room.run()
    assert code == 1
    assert room.bench.told()["begin", "a"] == 4
    assert "stopped 4 times" in of_kind(events, "step_failed")[0]["reason"]
    assert [event["name"] for event in of_kind(events, "step_blocked")] == ["b"]


@pytest.mark.slow
def test_stop_ends_jobs_by_sigterm_and_the_next_execution_goes_on(room, tmp_path):
    gate = tmp_path / "gate"
    plan = room.bench.plan(DIAMOND, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    worker = room.worker("a")
    assert set(stop(room.backend(), room.bench.store)) == set(plan.steps)
    assert wait_for(lambda: gone(worker), 10)
    assert room.finish(execution)[0] == 1
    assert room.backend().living() == {}
    assert room.bench.told()["begin", "a"] == 1, "a cancelled job is not started again"
    gate.touch()
    assert room.run()[0] == 0


@pytest.mark.slow
def test_a_stopped_worker_may_write_its_checkpoint(room, tmp_path):
    (tmp_path / "obedient.py").write_text(
        "import time\n"
        "def run(step):\n"
        "    open(step.params['diary'], 'a').write('begin a 0\\n')\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    except BaseException:\n"
        "        time.sleep(1)\n"
        "        open(step.params['diary'], 'a').write('saved a 0\\n')\n"
        "        raise\n"
    )
    room.bench.plan({"a": []})
    execution = room.execute(modules={"TRIVIAL": str(tmp_path / "obedient.py")})
    assert room.begun("a")
    stop(room.backend(), room.bench.store)
    assert wait_for(lambda: room.bench.told()["saved", "a"], 20)
    assert room.finish(execution)[0] == 1


@pytest.mark.slow
def test_cdpo_stop(room, tmp_path):
    room.bench.plan({"a": [], "b": ["a"]}, a={"gate": str(tmp_path / "gate")})
    write_project(tmp_path, "tag: none\n", devices=json.dumps({"gpus": [], **room.devices}))
    execution = room.execute()
    assert room.begun("a")
    done = run_cdpo("stop", "--store", room.bench.store.root, cwd=tmp_path)
    assert done.stdout.count("cancelled the job of") == 2
    assert room.bench.none_left()
    assert room.finish(execution)[0] == 1
    done = run_cdpo("stop", "--store", room.bench.store.root, cwd=tmp_path)
    assert done.stdout == "nothing runs in this store\n"


@pytest.mark.slow
def test_a_job_that_does_not_obey_is_killed(room, monkeypatch):
    from cdpo.engine.batch import ray_jobs

    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    process.stdout.read(1)
    monkeypatch.setattr(ray_jobs, "GRACE", 0.2)
    ray_jobs._end(process)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_each_step_has_the_gpu_that_ray_gives_it(room):
    room.bench.plan({"a": [], "b": []}, a={"seconds": 3}, b={"seconds": 3})
    room.devices["gpus"] = "auto"
    assert room.run()[0] == 0
    manifests = [json.loads((path / "manifest.json").read_text()) for path in room.bench.store.finished().values()]
    assert {manifest["summary"]["visible"] for manifest in manifests} == {"GPU-0", "GPU-1"}
    assert {manifest["device"]["gpus"][0]["uuid"] for manifest in manifests} == {"GPU-0", "GPU-1"}
