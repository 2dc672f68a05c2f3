"""One run of a matrix diverges: its step fails with the cause, what needs it is blocked, and the others go on."""

import json
from pathlib import Path

import pytest

from tests.conftest import run_cdpo, write_project

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 32, tune: 8, eval: 8}}\n"
TASKS = """\
tag: wild
pipelines: [SFT, DPO, GEN]
model: [tiny]
dataset: [small]
tasks:
  - {pipeline: DPO, beta: [0.1], learning_rate: [1e-3, 1e30], max_steps: 4, batch_size: 8}
SFT: {learning_rate: 2e-3, max_steps: 2, batch_size: 8}
GEN: {max_new_tokens: 8}
"""


@pytest.mark.slow
def test_the_rest_of_the_matrix_goes_on(tmp_path: Path) -> None:
    folder = write_project(tmp_path, TASKS, datasets=DATASETS)
    run_cdpo("prep", cwd=folder)
    told = run_cdpo("execute", "--display", "json", cwd=folder, check=1).stdout
    events = [json.loads(line) for line in told.splitlines()]
    (failed,) = (event for event in events if event["event"] == "step_failed")
    assert failed["pipeline"] == "DPO"
    assert "learning_rate1e+30" in failed["name"]
    assert failed["reason"].startswith("the loss is ")
    assert "training has diverged. Lower learning_rate" in failed["reason"]
    assert [event["pipeline"] for event in events if event["event"] == "step_blocked"] == ["GEN"]
    done = sorted(event["pipeline"] for event in events if event["event"] == "step_done")
    assert done == ["DPO", "GEN", "REFERENCE", "SFT"]
