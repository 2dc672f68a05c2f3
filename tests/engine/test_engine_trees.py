"""Whole process trees: what a step started ends with it, wherever it went, and nothing else is touched."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from engine_bench import TRIVIAL, of_kind, wait_for

from cdpo.engine import supervisors, trees
from cdpo.engine.local import remains
from cdpo.engine.process import identity, send
from cdpo.engine.stop import stop
from cdpo.engine.trees import Tree
from cdpo.engine.watch import proc
from cdpo.files import read_json, write_json

#: a process that starts a daemon in a session of its own, which starts another, and says their pids
FAMILY = """
import os, sys, time
for _ in range(2):
    if os.fork():
        break
    os.setsid()
os.write(1, f"{os.getpid()}\\n".encode())  # in one piece, whatever the others write
time.sleep(60)
"""


@pytest.fixture
def bystander():
    """A process that has nothing to do with any step."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    assert process.poll() is None, "it was killed"
    process.kill()
    process.wait()


def begun(bench, name="a", times=1):
    return wait_for(lambda: bench.told()["begin", name] == times)


def test_a_tree_is_killed_with_its_daemons_and_no_other_is(bystander):
    # marks are found on the whole machine, where these tests may run twice
    mine = f"test-{os.getpid()}/"
    marked = {name: {**os.environ, trees.MARK: f"{mine}{name}/34"} for name in ("key", "other")}
    family = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, env=marked["key"])
    neighbour = subprocess.Popen(["sleep", "60"], env=marked["other"])
    pids = [int(family.stdout.readline()) for _ in range(3)]
    tree = Tree(f"{mine}key/34")
    assert sorted(who["pid"] for who in tree.living()) == sorted(pids)
    assert sorted(who["pid"] for who in tree.kill()) == sorted(pids)
    family.wait()
    assert wait_for(lambda: not tree.kill())
    assert neighbour.poll() is None
    assert wait_for(lambda: not Tree(mine).kill())
    neighbour.wait()
    family.stdout.close()


def test_a_recycled_pid_is_never_signalled(bystander):
    who = identity(bystander.pid)
    assert not send({**who, "start": who["start"] - 1}, signal.SIGKILL)
    assert not send({"pid": 2**22 + 7, "start": 1}, signal.SIGKILL)


def test_an_old_kernel_is_no_obstacle(bystander, monkeypatch):
    def missing(pid):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", missing)
    who = identity(bystander.pid)
    assert not send({**who, "start": who["start"] - 1}, signal.SIGKILL)
    victim = subprocess.Popen(["sleep", "60"])
    assert send(identity(victim.pid), signal.SIGTERM)
    assert victim.wait(5) == -signal.SIGTERM


def test_stop_signals_no_process_that_got_the_pid_of_another(bench, bystander):
    """Both a worker and an execution are known by pid and start time."""
    bench.plan({"a": []}, a={"raise": "boom"})
    assert bench.run()[0] == 1
    (key,) = bench.store.working()
    held = bench.store.lock(key)
    fake = {**identity(bystander.pid), "start": 1}
    write_json(bench.store.work(key) / "proc.json", {**read_json(bench.store.work(key) / "proc.json"), **fake})
    with supervisors.registered(bench.store):
        (mine,) = (bench.store.root / "executing").iterdir()
        write_json(mine, {**read_json(mine), **fake})
        assert stop(bench.store, grace=0.2) == [key]
    held.release()


def test_a_killed_workers_daemon_is_killed_and_the_others_go_on(bench):
    gate = bench.folder / "gate"
    plan = bench.plan({"a": [], "b": []}, a={"leave": "daemon", "gate": str(gate)})
    running = bench.execute()
    assert wait_for(lambda: bench.told()["end", "b"] == bench.told()["begin", "a"] == 1)
    key = next(key for key, step in plan.steps.items() if step.name == "a")
    assert wait_for(lambda: len(bench.workers()) == 2)
    os.kill(proc(bench.store.work(key))["pid"], signal.SIGKILL)
    code, events = bench.finish(running)
    assert code == 1
    assert "SIGKILL" in of_kind(events, "step_failed")[0]["reason"]
    assert bench.none_left(0.1)
    assert not bench.store.is_locked(key)


def test_what_an_unwatched_worker_left_is_killed_by_the_next_execution(bench):
    gate = bench.folder / "gate"
    bench.plan({"a": []}, a={"leave": "daemon", "gate": str(gate)})
    first = bench.execute()
    assert begun(bench)
    assert wait_for(lambda: len(bench.workers()) == 2)
    first.kill()
    first.wait()
    (key,) = bench.store.working()
    os.kill(proc(bench.store.work(key))["pid"], signal.SIGKILL)
    assert wait_for(lambda: len(bench.workers()) == 1)
    # the daemon is a copy of the worker, and so holds the lock of its step
    assert bench.store.is_locked(key)
    (left,) = bench.workers()
    gate.touch()
    code, events = bench.run()
    assert code == 0
    assert f"process {left} (" in of_kind(events, "note")[0]["text"]
    assert bench.told()["begin", "a"] == 2
    assert bench.none_left(0.1)


def test_what_an_adopted_worker_left_is_killed(bench):
    gate = bench.folder / "gate"
    bench.plan({"a": []}, a={"leave": "daemon", "gate": str(gate)})
    first = bench.execute()
    assert begun(bench)
    first.kill()
    first.wait()
    second = bench.execute()
    assert bench.happened("step_adopted")
    gate.touch()
    assert bench.finish(second)[0] == 0
    assert bench.told()["begin", "a"] == 1
    assert bench.none_left(0.1)


def test_living_attempts_are_no_leftovers(bench):
    shape = {name: [] for name in "abcdefgh"}
    bench.plan(shape, **{name: {"seconds": 0.1} for name in shape})
    bench.store.root.mkdir()
    running = bench.execute()
    seen = 0
    while running.poll() is None:
        # what is seen is a worker that has published and has but to exit
        assert all(bench.store.find(mark.split("/")[1]) for mark in trees.leftovers(bench.store))
        seen += len(trees.marked(trees.store_mark(bench.store)))
    assert seen
    assert bench.finish(running)[0] == 0


def test_ctrl_c_tells_the_worker_alone_and_the_rest_ends_after_it(bench):
    """A signal to the whole group would kill the loaders of a worker that is about to write its checkpoint."""
    bench.plan({"a": []}, a={"leave": "child", "gate": str(bench.folder / "gate")})
    running = bench.execute()
    assert wait_for(lambda: len(bench.workers()) == 2)
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    assert bench.finish(running)[0] == 130
    assert bench.none_left(0.1)
    assert not bench.told()["told", "a"]


def test_the_second_ctrl_c_kills_the_whole_tree(bench):
    bench.plan({"a": []}, a={"leave": "daemon", "deaf": True, "gate": str(bench.folder / "gate")})
    running = bench.execute()
    assert wait_for(lambda: len(bench.workers()) == 2)
    running.send_signal(signal.SIGINT)
    assert bench.happened("note")
    running.send_signal(signal.SIGINT)
    assert bench.finish(running)[0] == 130
    assert bench.none_left(0.1)


def living(bench):
    """Pids of processes with a mark of this store."""
    return sorted(who["pid"] for several in trees.marked(trees.store_mark(bench.store)).values() for who in several)


@pytest.mark.parametrize("orphan", [False, True])
@pytest.mark.parametrize("how", ["daemon", "program"])
def test_stop_ends_daemons_too(bench, orphan, how):
    plan = bench.plan({"a": []}, a={"leave": how, "gate": str(bench.folder / "gate")})
    running = bench.execute()
    assert begun(bench)
    assert wait_for(lambda: len(living(bench)) == 2)
    if orphan:
        running.kill()
        running.wait()
    began = time.monotonic()
    assert stop(bench.store) == list(plan.steps)
    assert living(bench) == []
    assert time.monotonic() - began < 10


def test_stop_ends_what_a_dead_worker_left(bench):
    bench.plan({"a": []}, a={"leave": "daemon", "gate": str(bench.folder / "gate")})
    running = bench.execute()
    assert wait_for(lambda: len(bench.workers()) == 2)
    running.kill()
    running.wait()
    (key,) = bench.store.working()
    os.kill(proc(bench.store.work(key))["pid"], signal.SIGKILL)
    began = time.monotonic()
    assert stop(bench.store) == [key]
    assert living(bench) == []
    assert time.monotonic() - began < 10
    assert not bench.store.is_locked(key)


def test_a_process_that_will_not_die_is_told_and_does_not_stop_the_matrix(bench, bystander, monkeypatch):
    """As one does that waits in a driver; here the signal is lost on its way."""
    from cdpo.config.devices import Devices
    from cdpo.engine.local.engine import LocalEngine

    class Shown:
        def __init__(self):
            self.events = []

        def show(self, event):
            self.events.append(event)

        def tick(self):
            pass

        close = tick

    monkeypatch.setattr(remains, "PATIENCE", 0.2)
    monkeypatch.setattr(remains, "LONG_PATIENCE", 0.6)
    monkeypatch.setattr(trees, "send", lambda who, number: True)
    plan = bench.plan({"a": [], "b": []}, a={"leave": "daemon"})
    shown = Shown()
    devices = Devices.model_validate({"gpus": [], "cpu_workers": 1, "poll_seconds": 0.05})
    outcome = LocalEngine(bench.store, devices, shown, {"TRIVIAL": TRIVIAL}).run(plan)
    assert list(outcome.failed.values()) == ["ValueError: left a child behind"]
    assert len(outcome.done) == 1
    (note,) = [event["text"] for event in shown.events if event["event"] == "note"]
    (left,) = bench.workers()
    assert note.startswith(f"its worker has ended; killed and not yet gone: process {left} (")
    monkeypatch.undo()
    stop(bench.store)
    assert bench.none_left(0.1)
