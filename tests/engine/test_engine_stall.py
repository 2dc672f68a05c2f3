"""A step that writes nothing any more is ended by the watchdog; one that is only slow is not."""

from pathlib import Path

import pytest
from engine_bench import HERE, TRIVIAL, of_kind

from cdpo.engine.watch import failure

#: the least that a busy machine can tell from a hang
MINUTES = 6 / 60
RANK_0 = {"silent_rank": 0}
MODULES = {"SILENT": str(HERE / "silent.py"), "TRIVIAL": TRIVIAL}


def devices(minutes: float | None = MINUTES, processes: int = 1):
    return {"watchdog": {"stall_minutes": minutes}, "pipelines": {"SILENT": {"processes": processes}}}


def test_a_step_without_progress_fails_and_the_rest_goes_on(bench) -> None:
    bench.plan(
        {"stuck": [], "below": ["stuck"], "apart": []}, stuck={"pipeline": "SILENT", "lines": 1, "pause": 0, **RANK_0}
    )
    code, events = bench.run(modules=MODULES, devices=devices())
    assert code == 1
    failed = of_kind(events, "step_failed")
    assert [event["name"] for event in failed] == ["stuck"]
    assert failed[0]["reason"].startswith("no progress for 6 seconds: nothing was written")
    assert "watchdog: {stall_minutes: ...}" in failed[0]["reason"]
    assert "wait_for_ever" in Path(failed[0]["log"]).read_text()
    assert [event["name"] for event in of_kind(events, "step_blocked")] == ["below"]
    assert [event["name"] for event in of_kind(events, "step_done")] == ["apart"]
    assert bench.none_left()


def test_its_lock_is_free_and_the_next_execute_makes_it(bench) -> None:
    bench.plan({"stuck": []}, stuck={"pipeline": "SILENT", **RANK_0})
    assert bench.run(modules=MODULES, devices=devices(1 / 60))[0] == 1
    key = bench.store.working()[0]
    assert failure(bench.store.work(key))["exit"] == 1
    assert not bench.store.is_locked(key)
    code, events = bench.run(modules={"SILENT": TRIVIAL})
    assert code == 0
    assert of_kind(events, "step_done")


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [MINUTES, None])
def test_a_slow_step_is_let_be(bench, minutes) -> None:
    """Twice as long as the threshold in all, and never so long without a line."""
    bench.plan({"slow": []}, slow={"pipeline": "SILENT", "lines": 6, "pause": 2.0})
    assert bench.run(modules=MODULES, devices=devices(minutes))[0] == 0


@pytest.mark.slow
def test_a_rank_that_hangs_takes_the_others_along(bench) -> None:
    bench.plan({"ranks": []}, ranks={"pipeline": "SILENT", "silent_rank": 1})
    code, events = bench.run(modules=MODULES, devices=devices(30 / 60, processes=2))
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["reason"].startswith("no progress for 30 seconds")
    log = Path(failed["log"]).read_text()
    assert "wait_for_ever" in log, "the stacks of the ranks are in the log"
    assert bench.none_left()
