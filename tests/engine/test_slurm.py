"""Plans on a real SLURM of one node, without accounting: whatever is killed, cancelled, preempted or restarted.

What the real one cannot show here (accounts, GPUs) is in test_slurm_state.py.
"""

import os
import signal

import pytest
import slurm_cluster
from engine_bench import of_kind, wait_for

from cdpo.config.devices import Devices
from cdpo.engine.batch.engine import stop
from cdpo.engine.batch.job import command
from cdpo.engine.batch.slurm import Slurm
from cdpo.files import read_json_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
SLURM = {"engine": "slurm"}


@pytest.fixture(scope="module")
def daemons(tmp_path_factory):
    cluster = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(daemons, bench, monkeypatch):
    for name, value in daemons.environment.items():
        monkeypatch.setenv(name, value)
    yield daemons
    daemons.clear()


@pytest.fixture
def gate(tmp_path):
    return tmp_path / "gate"


def execute(bench, **params):
    return bench.execute(devices={**SLURM, "slurm": params})


def run(bench, **params):
    return bench.finish(execute(bench, **params), timeout=120)


def began(bench, name, times=1, seconds=40):
    return wait_for(lambda: bench.told()["begin", name] >= times, seconds)


def worker(bench, name):
    """Pid of the last worker that began a step."""
    lines = [line.split() for line in bench.diary.read_text().splitlines()]
    return [int(pid) for what, who, pid in lines if (what, who) == ("begin", name)][-1]


def job_of(cluster, name):
    """Id of the living job of a step."""
    (id,) = [id for id, job in cluster.named().items() if job.startswith(f"TRIVIAL-{name}.")]
    return id


def notes(bench, text):
    return [each for each in read_json_lines(bench.store.events) if text in each.get("text", "")]


def test_a_plan_in_its_order(bench, cluster):
    bench.plan(DIAMOND)
    code, events = run(bench)
    assert code == 0, events
    assert [event["found"] for event in of_kind(events, "step_queued")] == [False] * 4
    assert {event["name"] for event in of_kind(events, "step_done")} == set(DIAMOND)
    final = next(path for path in bench.store.finished().values() if path.name.startswith("d-"))
    assert (final / "out" / "value.txt").read_text() == "a\nb\na\nc\nd\n"
    code, events = run(bench)
    assert code == 0
    assert not of_kind(events, "step_queued")


def test_a_killed_submitter_is_not_needed_and_its_jobs_are_found(bench, cluster, gate):
    bench.plan(DIAMOND, a={"gate": str(gate)})
    first = execute(bench)
    assert began(bench, "a")
    first.kill()
    first.wait()
    second = execute(bench)
    assert bench.happened("step_queued", 8)
    second.kill()
    second.wait()
    gate.touch()
    assert wait_for(lambda: len(bench.store.finished()) == 4, 60)
    assert all(bench.told()["begin", name] == 1 for name in DIAMOND)
    found = [event["found"] for event in read_json_lines(bench.store.events) if event["event"] == "step_queued"]
    assert found == [False] * 4 + [True] * 4


def test_a_submitter_killed_while_it_submits(bench, cluster, gate):
    names = [f"s{number:02}" for number in range(30)]
    bench.plan({name: names[:1] if name != names[0] else [] for name in names}, s00={"gate": str(gate)})
    first = execute(bench)
    assert bench.happened("step_queued", 10)
    first.kill()
    first.wait()
    submitted = len(cluster.jobs())
    assert 10 <= submitted < 30
    gate.touch()
    assert run(bench)[0] == 0
    assert all(bench.told()["begin", name] == 1 for name in names)


def test_two_executions_submit_each_job_once(bench, cluster):
    bench.plan(DIAMOND, a={"seconds": 1})
    both = [execute(bench), execute(bench)]
    ended = [bench.finish(each) for each in both]
    assert [code for code, _ in ended] == [0, 0]
    assert all(bench.told()["begin", name] == 1 for name in DIAMOND)
    found = [event["found"] for _, events in ended for event in of_kind(events, "step_queued")]
    assert found.count(False) == 4


def test_a_failure_comes_with_its_log_and_blocks_what_needs_it(bench, cluster):
    bench.plan({**DIAMOND, "e": []}, b={"raise": "no such thing"})
    code, events = run(bench)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert failed["reason"] == "ValueError: no such thing"
    assert any("no such thing" in line for line in failed["tail"])
    (blocked,) = of_kind(events, "step_blocked")
    assert blocked["name"] == "d"
    assert {event["name"] for event in of_kind(events, "step_done")} == {"a", "c", "e"}
    assert wait_for(lambda: not cluster.jobs()), "the blocked job is cancelled"


def test_a_job_that_never_reaches_its_worker_fails_with_what_slurm_wrote(bench, cluster):
    bench.plan({"a": []})
    code, events = run(bench, setup=["echo module: cannot find cuda", "exit 7"])
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert "FAILED (exit code 7)" in failed["reason"]
    assert failed["tail"] == ["module: cannot find cuda"]


def test_a_job_that_cannot_begin_says_why(bench, cluster):
    plan = bench.plan({"a": [], "b": ["a"]})
    assert run(bench)[0] == 0
    finished = {path.name[0]: path for path in bench.store.finished().values()}
    backend = Slurm(bench.store, Devices.model_validate({**SLURM, "gpus": []}))
    step = next(step for step in plan.steps.values() if step.name == "b")
    bench.store.discard(finished["b"].name[-12:])
    bench.store.discard(finished["a"].name[-12:])
    job = backend.submit(step, command(bench.store, step.key), [])
    assert wait_for(lambda: backend.look([job])[job].kind == "ended", 40)
    assert "its input TRIVIAL/a-" in backend.look([job])[job].log.read_text()


def test_a_killed_worker_is_a_failure_and_the_next_execution_submits_the_rest(bench, cluster, gate):
    bench.plan(DIAMOND, b={"gate": str(gate)})
    execution = execute(bench)
    assert began(bench, "b")
    assert wait_for(lambda: bench.told()["end", "c"])
    os.kill(worker(bench, "b"), signal.SIGKILL)
    code, events = bench.finish(execution)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert "FAILED (exit code 137)" in failed["reason"]
    assert failed["tail"] == ["hello from b"]
    assert of_kind(events, "step_blocked")[0]["name"] == "d"
    gate.touch()
    code, events = run(bench)
    assert code == 0
    # d twice, where SLURM missed that its first job was cancelled when b's failed
    assert {event["name"] for event in of_kind(events, "step_queued")} == {"b", "d"}
    assert bench.told()["begin", "a"] == bench.told()["begin", "c"] == bench.told()["begin", "d"] == 1


def test_what_waits_for_a_job_that_failed_unseen_is_submitted_again(bench, cluster, gate):
    bench.plan(DIAMOND, a={"gate": str(gate)})
    first = execute(bench)
    assert began(bench, "a")
    first.kill()
    first.wait()
    os.kill(worker(bench, "a"), signal.SIGKILL)
    reasons = lambda: cluster.ask("squeue", "--noheader", "--format=%r").split()  # noqa: E731
    assert wait_for(lambda: reasons().count("DependencyNeverSatisfied") >= 2, 20)
    gate.touch()
    code, _ = run(bench)
    assert code == 0
    assert all(bench.told()["begin", name] == 1 for name in "bcd")


@pytest.mark.parametrize("how", ["requeue", "warning", "preemption", "node failure"])
def test_what_is_stopped_from_outside_is_queued_again_and_goes_on(bench, cluster, gate, how):
    bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    execution = execute(bench)
    assert began(bench, "a")
    job = job_of(cluster, "a")
    if how == "requeue":
        cluster.ask("scontrol", "requeue", job, check=True)
    elif how == "warning":
        # as SLURM does before a time limit, and in the grace before a preemption: the job still runs
        cluster.ask("scancel", "--signal=TERM", job, check=True)
    elif how == "preemption":
        words = ["--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
        cluster.ask("sbatch", *words, check=True)
    else:
        node = cluster.ask("sinfo", "--noheader", "--format=%n").strip()
        for state in ("DOWN", "RESUME"):
            # the second is refused where the node has come back by itself meanwhile
            words = ["scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test"]
            cluster.ask(*words, check=state == "DOWN")
    assert began(bench, "a", times=2)
    assert job_of(cluster, "a") == job, "it is the same job"
    gate.touch()
    code, events = bench.finish(execution, timeout=60)
    assert code == 0
    assert [event["attempt"] for event in of_kind(events, "step_started") if event["name"] == "a"] == [1, 2]
    assert not of_kind(events, "step_failed")
    assert bench.told()["begin", "b"] == 1


def test_a_job_that_reaches_its_time_limit_is_queued_again_and_goes_on(bench, cluster, gate):
    bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    execution = execute(bench, hours=1 / 60)
    assert began(bench, "a")
    assert began(bench, "a", times=2, seconds=110)
    gate.touch()
    code, events = bench.finish(execution)
    assert code == 0
    assert not of_kind(events, "step_failed")


def test_a_worker_that_is_deaf_to_the_warning_ends_by_the_time_limit(bench, cluster, gate):
    bench.plan({"a": []}, a={"gate": str(gate), "deaf": True})
    execution = execute(bench, hours=1 / 60)
    code, events = bench.finish(execution, timeout=150)
    assert code == 1
    assert "TIMEOUT" in of_kind(events, "step_failed")[0]["reason"]


def test_a_cancelled_job_stays_cancelled(bench, cluster, gate):
    bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    execution = execute(bench)
    assert began(bench, "a")
    cluster.ask("scancel", job_of(cluster, "a"), check=True)
    code, events = bench.finish(execution)
    assert code == 1
    assert "CANCELLED" in of_kind(events, "step_failed")[0]["reason"]
    assert [event["name"] for event in of_kind(events, "step_blocked")] == ["b"]
    assert wait_for(lambda: not cluster.jobs())
    gate.touch()
    assert run(bench)[0] == 0


def test_a_job_that_is_still_ending_is_waited_for_and_not_watched(bench, cluster, gate):
    bench.plan({"a": []}, a={"gate": str(gate), "deaf": True})
    first = execute(bench)
    assert began(bench, "a")
    first.kill()
    first.wait()
    # until SLURM kills it, its worker lives on
    cluster.ask("scancel", job_of(cluster, "a"), check=True)
    second = execute(bench)
    assert began(bench, "a", times=2)
    gate.touch()
    code, events = bench.finish(second)
    assert code == 0
    assert [event["found"] for event in of_kind(events, "step_queued")] == [False]


def test_stop_cancels_and_the_next_execution_begins_again(bench, cluster, gate):
    plan = bench.plan(DIAMOND, a={"gate": str(gate)})
    first = execute(bench)
    assert began(bench, "a")
    first.kill()
    first.wait()
    stopped = stop(Slurm(bench.store, Devices.model_validate({**SLURM, "gpus": []})), bench.store)
    assert stopped == sorted(plan.steps)
    gate.touch()
    # at once: what is being cancelled is not taken for a job that lives
    code, events = run(bench)
    assert code == 0
    assert not any(event["found"] for event in of_kind(events, "step_queued"))


def test_another_store_is_left_alone(bench, cluster, gate, tmp_path):
    from engine_bench import Bench

    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other")
    for each in (bench, other):
        each.plan({"a": []}, a={"gate": str(gate)})
    both = [execute(each) for each in (bench, other)]
    assert began(bench, "a")
    assert began(other, "a")
    assert len(stop(Slurm(bench.store, Devices.model_validate({**SLURM, "gpus": []})), bench.store)) == 1
    gate.touch()
    assert other.finish(both[1])[0] == 0
    assert bench.finish(both[0])[0] == 1


def test_a_controller_that_is_restarted_ends_nothing(bench, cluster, gate):
    bench.plan(DIAMOND, a={"gate": str(gate)})
    execution = execute(bench)
    assert began(bench, "a")
    cluster.stop_controller()
    try:
        assert wait_for(lambda: notes(bench, "SLURM does not answer"), 60)
        assert bench.run(devices=SLURM)[0] == 1, "nothing can be submitted now"
        gate.touch()
        assert wait_for(lambda: bench.told()["end", "a"], 20)
    finally:
        cluster.start_controller()
    code, events = bench.finish(execution, timeout=90)
    assert code == 0
    assert not of_kind(events, "step_failed")
    assert all(bench.told()["begin", name] == 1 for name in DIAMOND)


def test_what_sbatch_refuses_is_said_with_what_to_do(bench, cluster):
    from cdpo.errors import UsageError

    plan = bench.plan({"a": []})
    (step,) = plan.steps.values()
    for params, gpus, said in (({"partition": "nope"}, [], "partition"), ({}, "auto", "gpus: \\[\\]")):
        backend = Slurm(bench.store, Devices.model_validate({**SLURM, "gpus": gpus, "slurm": params}))
        with pytest.raises(UsageError, match=said):
            backend.submit(step, ["true"], [])


def test_a_job_that_slurm_forgot_is_unknown(bench, cluster):
    backend = Slurm(bench.store, Devices.model_validate({**SLURM, "gpus": []}))
    assert backend.look(["99999"])["99999"].kind == "unknown"
