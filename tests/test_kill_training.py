"""Real training through the command line, killed again and again: its weights are those of an undisturbed run."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdpo.engine.process import Identity, is_alive, send
from cdpo.engine.watch import last_progress, proc
from cdpo.files import read_json_lines
from cdpo.store import Store
from tests.conftest import run_cdpo, write_project

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
TASKS = """\
tag: killed
pipelines: [SFT, DPO]
model: [tiny]
dataset: [small]
tasks:
  - {pipeline: DPO, beta: [0.1], learning_rate: 1e-3, max_steps: 500, batch_size: 8}
SFT: {learning_rate: 2e-3, max_steps: 500, batch_size: 8}
"""
#: a checkpoint after every optimiser step that takes as long
DEVICES = "gpus: []\ncpu_workers: 1\nthreads: 1\ncheckpoint_minutes: 0.001\n"
KILLS = 24


def training(store: Store) -> dict[str, tuple[int, Identity]]:
    """Key -> (optimiser steps done, worker) of the steps that are being made."""
    found = {}
    for key in store.working():
        progress, worker = last_progress(store.work(key) / "events.jsonl"), proc(store.work(key))
        # not one that the last kill ended, whose traces lie there yet
        if progress is not None and worker is not None and is_alive(worker):
            found[key] = (progress["done"], {"pid": worker["pid"], "start": worker["start"]})
    return found


def weights(store: Store) -> dict[str, dict[str, str]]:
    """Checksums of the weights, and every loss that was logged, by step."""
    found = {}
    for path in store.finished().values():
        manifest = store.manifest(path)
        if manifest["pipeline"] in ("SFT", "DPO"):
            outputs = manifest["outputs"]
            tensors = {name: file["sha256"] for name, file in outputs.items() if name.endswith(".safetensors")}
            losses = [each.get("loss") for each in read_json_lines(path / "metrics.jsonl")]
            assert tensors
            found[manifest["key"]] = {**tensors, "losses": str(losses)}
    return found


@pytest.mark.slow
def test_training_that_is_killed_two_dozen_times_ends_in_the_same_weights(tmp_path: Path) -> None:
    quiet = write_project(tmp_path / "quiet", TASKS, datasets=DATASETS, devices=DEVICES)
    killed = write_project(tmp_path / "killed", TASKS, datasets=DATASETS, devices=DEVICES)
    for folder in (quiet, killed):
        run_cdpo("prep", cwd=folder)
    run_cdpo("execute", "--display", "plain", cwd=quiet)
    store, rng = Store(killed / ".cdpo"), random.Random(0)
    kills = {"worker": 0, "both": 0, "supervisor": 0}
    reached: dict[str, int] = {}
    limit = time.monotonic() + 3000
    command = [sys.executable, "-m", "cdpo.cli", "execute", "--display", "plain"]
    execution, aim = None, 0
    while sum(kills.values()) < KILLS and len(weights(store)) < 2:
        assert time.monotonic() < limit
        if execution is None or execution.poll() is not None:
            execution = subprocess.Popen(command, cwd=killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        here = training(store)
        key = next((key for key, (done, _) in here.items() if done >= reached.get(key, 0) + aim), None)
        if key is None:
            time.sleep(0.02)
            continue
        reached[key], worker = here[key]
        time.sleep(rng.uniform(0, 0.2))
        (who,) = rng.choices(list(kills), weights=(3, 3, 1))
        kills[who] += 1
        aim = rng.randint(0, 12)
        if who != "worker":
            execution.kill()
            execution.wait()
        if who != "supervisor":
            send(worker, signal.SIGKILL)
    assert execution is not None
    execution.wait(300)
    print(f"real training: killed {kills}")
    assert sum(kills.values()) >= KILLS, "too little was killed to say anything"
    run_cdpo("execute", "--display", "plain", cwd=killed)
    assert weights(store) == weights(Store(quiet / ".cdpo"))
    assert store.working() == []
