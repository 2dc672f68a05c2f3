"""Shards through the command line: cut, killed, joined."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdpo.generate.responses import read_responses
from tests.conftest import run_cdpo, write_project

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 8, tune: 8, eval: 50}}\n"
TASKS = """\
tag: shards
pipelines: [GEN]
model: [tiny]
dataset: [small]
seed: [0]
tasks: [{pipeline: BASE}]
GEN: {max_new_tokens: 8, samples: 2}
"""
CUT = "gpus: []\ncpu_workers: 2\nthreads: 1\npipelines: {GEN: {shards: 3}}\n"


def made(folder: Path) -> list[Path]:
    return sorted((folder / ".cdpo" / "steps" / "GEN").iterdir())


def joined(folder: Path) -> list[dict]:
    (step,) = made(folder)
    return [{**row, "logprobs": None} for row in read_responses(step / "out")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished project, uncut."""
    folder = write_project(tmp_path_factory.mktemp("whole"), TASKS, datasets=DATASETS)
    run_cdpo("prep", cwd=folder)
    run_cdpo("execute", cwd=folder)
    return folder


def test_plan_says_what_will_be_cut(tmp_path: Path) -> None:
    folder = write_project(tmp_path, TASKS, datasets=DATASETS)
    assert "shards" not in run_cdpo("plan", cwd=folder).stdout
    (folder / "configs" / "devices.yaml").write_text(CUT)
    assert "each GEN step is cut into 3 shards" in run_cdpo("plan", cwd=folder).stdout
    (folder / "configs" / "devices.yaml").write_text(CUT.replace("3}", "auto}"))
    assert "each GEN step is cut into as many shards as can run at once" in run_cdpo("plan", cwd=folder).stdout


@pytest.mark.slow
def test_three_shards_give_what_one_step_gives(whole: Path, tmp_path: Path) -> None:
    folder = write_project(tmp_path / "cut", TASKS, datasets=DATASETS)
    (folder / "configs" / "devices.yaml").write_text(CUT)
    run_cdpo("prep", cwd=folder)
    events = [json.loads(each) for each in run_cdpo("execute", "--display", "json", cwd=folder).stdout.splitlines()]
    begun = [event["name"] for event in events if event["event"] == "step_started"]
    assert [name[-4:] for name in begun] == ["1of3", "2of3", "3of3", begun[3][-4:]]
    # the parts are gone, the step has the name that it has uncut
    assert [path.name for path in made(folder)] == [path.name for path in made(whole)]
    assert joined(folder) == joined(whole)
    assert "nothing to free" in run_cdpo("gc", cwd=folder).stdout
    # another number of devices finds it finished
    (folder / "configs" / "devices.yaml").write_text(CUT.replace("3", "4"))
    assert "0 to run" in run_cdpo("execute", "--display", "plain", cwd=folder).stdout


@pytest.mark.slow
def test_every_row_once_whatever_is_killed(whole: Path, tmp_path: Path) -> None:
    """Supervisors and workers are killed at random moments, again and again."""
    folder = write_project(tmp_path / "killed", TASKS, datasets=DATASETS)
    (folder / "configs" / "devices.yaml").write_text(CUT)
    run_cdpo("prep", cwd=folder)
    draw, kills = random.Random(0), 0
    for _ in range(40):
        execute = subprocess.Popen(
            [sys.executable, "-m", "cdpo.cli", "execute"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            execute.wait(timeout=draw.uniform(3, 9))
            break
        except subprocess.TimeoutExpired:
            kills += 1
        workers = [json.loads(path.read_text()) for path in (folder / ".cdpo" / "work").glob("*/proc.json")]
        if draw.random() < 0.5:
            os.kill(execute.pid, signal.SIGKILL)
        for worker in workers:
            if draw.random() < 0.7 and os.path.exists(f"/proc/{worker['pid']}"):
                os.kill(worker["pid"], signal.SIGKILL)
        execute.kill()
        execute.wait()
        time.sleep(0.2)
    for _ in range(3):
        if subprocess.run([sys.executable, "-m", "cdpo.cli", "execute"], cwd=folder).returncode == 0:
            break
    assert kills >= 2
    assert joined(folder) == joined(whole)


@pytest.mark.slow
def test_gc_leaves_parts_that_are_still_to_be_joined(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    (folder / "configs" / "devices.yaml").write_text(CUT)
    (step,) = made(folder)
    shutil.rmtree(step)
    # the first part is made, then the execution ends
    execute = subprocess.Popen([sys.executable, "-m", "cdpo.cli", "execute"], cwd=folder, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not made(folder) and time.monotonic() < limit:
        time.sleep(0.05)
    execute.send_signal(signal.SIGINT)
    execute.wait()
    parts = made(folder)
    assert 1 <= len(parts) <= 3
    run_cdpo("gc", "--yes", cwd=folder)
    assert made(folder) == parts
    run_cdpo("execute", cwd=folder)
    assert joined(folder) == joined(whole)
