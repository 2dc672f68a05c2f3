"""Services under blows: whatever is killed, whenever, steps end with every row once, and nothing is left."""

import random
import time

import pytest
from fake_gpus import A
from serving import Serving, kill

from cdpo.engine.gpus import leases
from cdpo.engine.gpus.nvml import list_gpus
from cdpo.engine.stop import stop
from cdpo.engine.watch import proc

pytestmark = pytest.mark.slow


@pytest.fixture
def serving(tmp_path, machine):
    machine.show(A)
    bench = Serving(tmp_path / "mit Leer zeichen")
    bench.folder.mkdir()
    yield bench
    bench.close()


def victims(serving, execution):
    """By kind, the pids that could be killed now."""
    found = {"supervisor": [execution.pid], "server": [], "keeper": [], "worker": []}
    for each in serving.services():
        found["server"] += [each["pid"]] if each["pid"] else []
    for room in serving.rooms():
        said = room.state()
        found["keeper"] += [said["keeper"]["pid"]] if said and room.is_kept() else []
    for key in serving.store.working():
        who = proc(serving.store.work(key))
        found["worker"] += [who["pid"]] if who and serving.store.is_locked(key) else []
    return {kind: pids for kind, pids in found.items() if pids}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("gpus", [[], "auto"])
def test_whatever_is_killed_every_row_is_answered_once(serving, seed, gpus):
    draw = random.Random(f"{seed} {gpus}")
    rows = 40
    plan = serving.served_plan("a", "b", "c", model={"a": "one", "b": "one", "c": "two"}, rows=rows, pause=0.05)
    blows = []

    def execute():
        return serving.ask("--child", service={"restarts": 100}, devices={"gpus": gpus, "cpu_workers": 3})

    execution = execute()
    limit = time.monotonic() + 40
    while time.monotonic() < limit and len(blows) < 15:
        time.sleep(draw.uniform(0.1, 1.2))
        if execution.poll() is None:
            alive = victims(serving, execution)
            kind = draw.choice(sorted(alive))
            blows.append(kind)
            kill(draw.choice(alive[kind]))
        if execution.poll() == 0:
            break
        if execution.poll() is not None:
            execution = execute()
    while serving.finish(execution, 120)[0] != 0:
        execution = execute()
    # a keeper that was killed when all was done: what it started is ended by whoever comes next
    assert serving.finish(execute(), 120)[0] == 0
    for key in plan.steps:
        assert [row["text"] for row in serving.rows(key)] == [f"ROW {at}" for at in range(rows)], blows
    assert serving.no_service(), blows
    assert all(leases.holder(gpu) is None for gpu in list_gpus()), blows


@pytest.mark.parametrize("seed", range(4))
def test_stop_at_any_moment_leaves_nothing(serving, seed):
    serving.served_plan("a", "b", model={"a": "one", "b": "two"}, rows=500, pause=0.05)
    execution = serving.ask("--child", "--slow", "0.3")
    assert serving.happened("step_started")
    time.sleep(random.Random(seed).uniform(0.0, 2.0))
    stop(serving.store)
    assert serving.finish(execution)[0] in (130, -15)
    assert serving.services() == []
    assert serving.none_left(1.0)
