"""The torture test: whatever is killed, whenever, every step is made right, once, by one process at a time."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "engine"))

from torture import Torture, at_once
from torture_reader import judge, outputs, summary

from cdpo.store import locks


def campaign(folder, seed, kills, environment=None, plans=1):
    """A judged campaign of at least so many kills, shared out among so many plans or more."""
    torture = Torture(folder, seed, environment)
    began = time.monotonic()
    try:
        while torture.killed < kills:
            assert torture.round(min(kills, torture.killed + kills // plans)) == 0, torture.said
        wrong, twice = judge(torture)
    finally:
        torture.close()
    print(summary(torture, wrong, twice, time.monotonic() - began))
    assert wrong == []
    assert twice == []
    return torture


def test_a_hundred_kills(tmp_path):
    tortured = campaign(tmp_path / "tortured", 0, 100)
    assert {"supervisor", "worker"} <= set(tortured.kills)
    assert {"rank", "launcher"} & set(tortured.kills)


@pytest.mark.slow
def test_a_hundred_kills_where_locks_are_claims(tmp_path, monkeypatch):
    # this process locks as the executions do
    monkeypatch.setattr(locks, "has_flock", lambda folder: False)
    folder = tmp_path / "tortured"
    without_flock = [{"event": "fcntl.flock", "below": str(folder / "store"), "error": "ENOLCK"}]
    campaign(folder, 2, 100, {"FAULTS": json.dumps(without_flock)})


@pytest.mark.slow
def test_a_thousand_kills_leave_what_an_undisturbed_run_leaves(tmp_path):
    tortured = campaign(tmp_path / "tortured", 1, 1000, plans=20)
    assert min(tortured.kills.values()) >= 10
    undisturbed = Torture(tmp_path / "undisturbed", seed=None)
    undisturbed.begin(at_once(tortured.plans[-1], undisturbed.diary(0)))
    assert undisturbed.execute().wait(120) == 0, undisturbed.said
    made, alone = outputs(tortured.store), outputs(undisturbed.store)
    assert len(alone) == 20
    assert all(made[key] == files for key, files in alone.items())
