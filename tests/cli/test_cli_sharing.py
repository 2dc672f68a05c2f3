"""Shared steps run once, whatever the matrix grows into; on real training steps of one optimiser step each."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import run_cdpo, write_project

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 32, tune: 8, eval: 8}}\n"
MODELS = "one: {build: {kind: tiny, seed: 0}}\ntwo: {build: {kind: tiny, seed: 1}}\n"
TASKS = """\
tag: shared
pipelines: [SFT, DPO]
model: [one, two]
dataset: [small]
seed: [0, 1]
tasks: [{pipeline: DPO, beta: [0.1, 0.3, 0.5]}]
SFT: {learning_rate: 1e-3, max_steps: 1, batch_size: 8}
DPO: {learning_rate: 1e-4, max_steps: 1, batch_size: 8}
"""


def started(folder: Path) -> Counter[str]:
    """Execute, and count by pipeline the steps that were started."""
    done = run_cdpo("execute", "--display", "json", cwd=folder)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return Counter(event["pipeline"] for event in events if event["event"] == "step_started")


def edit(folder: Path, old: str, new: str) -> None:
    tasks = folder / "configs" / "tasks.yaml"
    assert old in tasks.read_text()
    tasks.write_text(tasks.read_text().replace(old, new))


@pytest.mark.slow
def test_shared_steps_run_once(tmp_path: Path) -> None:
    write_project(tmp_path, TASKS, datasets=DATASETS, models=MODELS)
    assert started(tmp_path) == {"PREP": 1, "SFT": 4, "REFERENCE": 4, "DPO": 12}
    assert started(tmp_path) == {}
    edit(tmp_path, "0.5", "0.7")
    assert started(tmp_path) == {"DPO": 4}
    edit(tmp_path, "seed: [0, 1]", "seed: [2]")
    edit(tmp_path, "model: [one, two]", "model: [two]")
    edit(tmp_path, "[0.1, 0.3, 0.7]", "[0.1]")
    assert started(tmp_path) == {"SFT": 1, "REFERENCE": 1, "DPO": 1}


@pytest.mark.slow
def test_two_matrices_live_in_one_store(tmp_path: Path) -> None:
    one = write_project(tmp_path / "one", TASKS, datasets=DATASETS, models=MODELS)
    two = write_project(tmp_path / "two", TASKS.replace("tag: shared", "tag: other"), datasets=DATASETS, models=MODELS)
    store = tmp_path / "store"
    run_cdpo("--store", store, "prep", cwd=one)
    run_cdpo("--store", store, "prep", cwd=two)
    assert len(list((store / "plans").glob("*.json"))) == 2
    assert len(list((store / "steps" / "PREP").iterdir())) == 1, "the data is prepared once for both"
    plans = [json.loads(run_cdpo("plan", "--json", "--store", store, cwd=each).stdout) for each in (one, two)]
    assert [step["key"] for step in plans[0]["steps"]] == [step["key"] for step in plans[1]["steps"]]
    assert {run["tag"] for plan in plans for run in plan["runs"]} == {"shared", "other"}
    for each in (one, two):
        states = json.loads(run_cdpo("status", "--json", "--store", store, cwd=each).stdout)["steps"]
        assert Counter(step["state"] for step in states) == {"done": 1, "waiting": 20}
