"""`cdpo execute` interrupted while a step trains, by Ctrl+C and by SIGKILL of everything; the next one goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cdpo.files import read_json, read_json_lines
from cdpo.store import Store
from tests.conftest import run_cdpo, write_project

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 160, tune: 16, eval: 24}}\n"
DEVICES = "gpus: []\ncheckpoint_minutes: 0.01\npipelines: {SFT: {micro_batch: 4}, DPO: {micro_batch: 4}}\n"
TASKS = """\
tag: first
pipelines: [SFT, DPO]
model: [tiny]
dataset: [small]
tasks: [{pipeline: DPO, beta: [0.1], learning_rate: 1e-3, num_train_epochs: 2, batch_size: 8}]
SFT: {learning_rate: 2e-3, num_train_epochs: 3, batch_size: 8}
"""


def prepared(folder: Path) -> Path:
    write_project(folder, TASKS, datasets=DATASETS, devices=DEVICES)
    run_cdpo("prep", cwd=folder)
    return folder


class Execute:
    """`cdpo execute` in the background."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / ".cdpo" / "work"
        command = [sys.executable, "-m", "cdpo.cli", "execute", "--display", "plain"]
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for(self, pipeline: str) -> dict[str, Any]:
        """Wait until a checkpoint of a step of `pipeline` is there; its proc.json."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            for marker in self.work.glob("*/ckpt/checkpoint-*/complete.json"):
                step = marker.parents[2]
                if read_json(step / "step.json")["pipeline"] == pipeline:
                    return read_json(step / "proc.json")
            time.sleep(0.01)
        pytest.fail(f"no checkpoint of {pipeline}: {self.process.communicate()[0]}")


def manifests(folder: Path) -> dict[str, Any]:
    store = Store(folder / ".cdpo")
    found = [read_json(path) for path in sorted(store.steps.glob("*/*/manifest.json"))]
    return {each["pipeline"]: each for each in found}


def curves(folder: Path, pipeline: str) -> list[Any]:
    (path,) = (folder / ".cdpo" / "steps" / pipeline).glob("*/metrics.jsonl")
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in read_json_lines(path)]


@pytest.mark.slow
def test_interrupted_matrices_end_as_uninterrupted_ones(tmp_path: Path) -> None:
    whole, broken = prepared(tmp_path / "whole"), prepared(tmp_path / "broken")
    run_cdpo("execute", "--display", "plain", cwd=whole)
    # Ctrl+C in SFT
    execute = Execute(broken)
    execute.wait_for("SFT")
    execute.process.send_signal(signal.SIGINT)
    said = execute.process.communicate(timeout=120)[0]
    assert execute.process.returncode == 130, said
    assert "stopped after optimiser step" in said
    # SIGKILL of the execution and of its worker in DPO
    execute = Execute(broken)
    worker = execute.wait_for("DPO")
    execute.process.kill()
    os.kill(worker["pid"], signal.SIGKILL)
    assert "goes on from optimiser step" in execute.process.communicate(timeout=60)[0], "SFT's"
    said = run_cdpo("execute", "--display", "plain", cwd=broken).stdout
    assert "goes on from optimiser step" in said, "DPO's"
    one, other = manifests(whole), manifests(broken)
    for pipeline in ("SFT", "DPO"):
        assert len(other[pipeline]["summary"]["resumed_from"]) == 1
        assert one[pipeline]["outputs"] == other[pipeline]["outputs"]
        assert curves(whole, pipeline) == curves(broken, pipeline)
