"""One small matrix, run once for all tests of the commands."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import run_cdpo, write_project

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
TASKS = """\
tag: first
pipelines: [SFT, RM, DPO, GEN, EVALREWARD]
model: [tiny]
dataset: [small]
tasks:
  - {pipeline: SFT}
  - {pipeline: DPO, beta: [0.1], learning_rate: 1e-3, max_steps: 2, batch_size: 8}
SFT: {learning_rate: 2e-3, max_steps: 2, batch_size: 8}
RM: {learning_rate: 1e-3, max_steps: 2, batch_size: 8}
GEN: {max_new_tokens: 8}
"""


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished matrix of ten steps. Tests that change a store work on a copy."""
    # made once for all workers, which have a folder each below the one that they share
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    folder, made = shared / "cli-project", shared / "cli-project.made"
    with FileLock(shared / "cli-project.lock"):
        if not made.exists():
            write_project(folder, TASKS, datasets=DATASETS)
            run_cdpo("prep", cwd=folder)
            run_cdpo("execute", "--display", "plain", cwd=folder)
            made.touch()
    return folder
