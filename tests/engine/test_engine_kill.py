"""kill -9 at random moments: whatever dies, the next execution ends in the same steps, and none is made twice."""

import os
import random
import signal
import time
from collections import Counter

import pytest
from engine_bench import of_kind

from cdpo.files import read_json_lines

SHAPE = {
    "a": [], "b": [], "c": ["a"], "d": ["a", "b"], "e": ["b"], "f": ["c", "d"], "g": ["d", "e"], "h": ["f", "g"]
}  # fmt: skip


def campaign(bench, kills, rng, targets, seconds=0.12):
    """Start executions and kill one of `targets` in each at a random moment; then let one finish."""
    plan = bench.plan(SHAPE, **{name: {"seconds": seconds} for name in SHAPE})
    killed = 0
    discarded = Counter()
    for _ in range(10 * kills):
        if killed == kills:
            break
        process = bench.execute()
        time.sleep(rng.uniform(0.1, 0.8))
        if rng.choice(targets) == "supervisor":
            victims = [process.pid]
        else:
            victims = [pid for pid in bench.workers() if pid != process.pid][:1]
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                pass
        if process.poll() is None and "worker" in targets:
            process.wait(30)
        process.wait(30)
        if len(bench.store.finished()) == len(SHAPE):
            for key in list(plan.steps)[rng.randrange(4) :]:
                bench.store.discard(key)
                discarded[key] += 1
    code, events = bench.run()
    assert code == 0, of_kind(events, "step_failed")
    assert killed == kills
    assert bench.none_left()
    names = {path.name.rpartition("-")[0] for path in bench.store.finished().values()}
    assert names == set(SHAPE)
    assert all(bench.store.intact(path) is None for path in bench.store.finished().values())
    assert not bench.store.working()
    published = Counter(event["key"] for event in read_json_lines(bench.store.events) if event["event"] == "step_done")
    assert all(published[key] <= 1 + discarded[key] for key in plan.steps)
    return {plan.steps[key].name: 1 + discarded[key] for key in plan.steps}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_executions(bench, seed):
    # long steps: the next execution comes while the workers of the killed one still run
    wanted = campaign(bench, 12, random.Random(seed), ["supervisor"], seconds=0.6)
    # no worker was killed, so each step was begun as often as it was asked for, and not once more
    assert {name: bench.told()["begin", name] for name in SHAPE} == wanted


@pytest.mark.parametrize("seed", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_workers_and_executions(bench, seed):
    campaign(bench, 10, random.Random(seed), ["worker", "supervisor"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_kills(bench, seed):
    campaign(bench, 40, random.Random(seed), ["worker", "supervisor"])


@pytest.mark.slow
def test_the_contents_are_those_of_an_undisturbed_run(bench, tmp_path):
    from engine_bench import Bench

    campaign(bench, 6, random.Random(7), ["worker", "supervisor"])
    (tmp_path / "calm").mkdir()
    calm = Bench(tmp_path / "calm")
    calm.plan(SHAPE)
    assert calm.run()[0] == 0

    def contents(store):
        return {path.name[0]: (path / "out" / "value.txt").read_text() for path in store.finished().values()}

    assert contents(bench.store) == contents(calm.store)
