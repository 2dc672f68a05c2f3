"""GEN by a server that cdpo starts: one for all steps of a model, killed and restarted, every row once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdpo.files import read_json
from cdpo.generate.responses import read_responses
from cdpo.store import Store
from cdpo.store.services import rooms
from tests.conftest import ROOT, run_cdpo, write_project

SERVER = ROOT / "tests" / "generate" / "openai_server.py"
DATASETS = "small: {rule: playground, gold: playground, playground: {train: 8, tune: 8, eval: 60}}\n"
TASKS = """\
tag: served
pipelines: [GEN]
model: [tiny]
dataset: [small]
seed: [0, 1]
tasks: [{pipeline: BASE}]
GEN: {max_new_tokens: 8, backend: openai}
"""
DEVICES = f"""\
gpus: []
cpu_workers: 2
threads: 1
services:
  GEN:
    server: [python, "{SERVER}", --port, "{{port}}", --model, "{{model}}"]
    api: vllm
    concurrency: 4
"""


def project(folder: Path, tasks: str = TASKS, devices: str = DEVICES) -> Path:
    write_project(folder, tasks, datasets=DATASETS)
    (folder / "configs" / "devices.yaml").write_text(devices)
    run_cdpo("prep", cwd=folder)
    return folder


def rows(folder: Path) -> dict[int, list[dict]]:
    """The responses of each step without what rounding changes, by the step's seed."""
    found = {}
    for step in (folder / ".cdpo" / "steps" / "GEN").iterdir():
        seed = read_json(step / "manifest.json")["seed"]
        found[seed] = [{**row, "logprobs": None} for row in read_responses(step / "out")]
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """What the transformers backend says: the server computes with it, so that the tokens are the same."""
    folder = project(tmp_path_factory.mktemp("plain"), TASKS.replace(", backend: openai", ""))
    run_cdpo("execute", cwd=folder)
    return rows(folder)


def started(folder: Path) -> int:
    """How many server processes the keeper started."""
    (room,) = rooms(Store(folder / ".cdpo"))
    return room.log.read_text().count("was started on")


@pytest.mark.slow
def test_one_server_for_both_steps_and_the_rows_are_those_of_transformers(plain, tmp_path):
    folder = project(tmp_path)
    events = [json.loads(each) for each in run_cdpo("execute", "--display", "json", cwd=folder).stdout.splitlines()]
    assert sum(event["event"] == "step_started" for event in events) == 2
    assert rows(folder) == plain
    assert started(folder) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["server", "keeper", "worker", "supervisor"])
def test_every_row_once_whatever_is_killed(plain, tmp_path, victim):
    folder = project(tmp_path)
    store = Store(folder / ".cdpo")
    process = subprocess.Popen([sys.executable, "-m", "cdpo.cli", "execute"], cwd=folder, stdout=subprocess.DEVNULL)

    def pid() -> int | None:
        """The victim, once a first response is there."""
        if not any(path.stat().st_size for path in (store.root / "work").glob("*/ckpt/responses.jsonl")):
            return None
        if victim == "supervisor":
            return process.pid
        if victim == "worker":
            return next((read_json(path)["pid"] for path in (store.root / "work").glob("*/proc.json")), None)
        state = rooms(store)[0].state() or {}
        return (state.get("keeper") or {}).get("pid") if victim == "keeper" else state.get("server")

    limit = time.monotonic() + 90
    while (found := pid()) is None and time.monotonic() < limit:
        time.sleep(0.01)
    assert found is not None
    os.kill(found, signal.SIGKILL)
    process.wait(timeout=180)
    run_cdpo("execute", cwd=folder)
    assert rows(folder) == plain


def test_a_step_without_a_server_is_refused_before_anything_runs(tmp_path):
    write_project(tmp_path, TASKS, datasets=DATASETS)
    (tmp_path / "configs" / "devices.yaml").write_text("gpus: []\n")
    done = subprocess.run(
        [sys.executable, "-m", "cdpo.cli", "execute"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "`backend: openai` needs a server: write `services: {GEN: {server: vllm}}`" in done.stderr
