"""`report_to` in devices.yaml, from the command line to what the trackers keep."""

import json
import os
import sqlite3
from pathlib import Path

import pytest

from tests.conftest import run_cdpo, write_project

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 32, tune: 8, eval: 8}}\n"
TASKS = """\
tag: watched
pipelines: [SFT, RM, DPO]
model: [tiny]
dataset: [small]
tasks:
  - {pipeline: DPO, beta: [0.1], learning_rate: 1e-3, max_steps: 2, batch_size: 8}
SFT: {learning_rate: 2e-3, max_steps: 3, batch_size: 8}
RM: {learning_rate: 1e-3, max_steps: 2, batch_size: 8}
"""
ALL = "report_to: [wandb, trackio, tensorboard]\n"
SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "recogni5",
    "HF_TOKEN": "hf_recognisableHubToken",
    "OPENAI_API_KEY": "sk-recognisableOpenAI",
}
WRITTEN = "hf_recognisableTokenOfTheFile"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This process's, without accounts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "TRACKIO_"))}
    return {**kept, "HOME": str(folder), **more}


def project(folder: Path, devices: str) -> Path:
    return write_project(folder, TASKS, datasets=DATASETS, devices=devices)


def test_wandb_without_an_account_is_refused_before_anything_runs(tmp_path: Path) -> None:
    folder = project(tmp_path, "report_to: wandb\n")
    told = run_cdpo("plan", cwd=folder, env=environment(tmp_path), check=2).stderr
    assert "report_to: wandb has no account: `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline" in told
    assert not (folder / ".cdpo").exists()


@pytest.mark.slow
def test_every_command_that_leads_to_training_refuses_and_the_doctor_tells(tmp_path: Path) -> None:
    folder = project(tmp_path, "report_to: [wandb, tensorboard]\n")
    one = ["sft", "-m", "tiny", "-d", "small", "-t", "try"]
    for words in (["prep"], ["execute"], ["execute", "--smoke"], one):
        told = run_cdpo(*words, cwd=folder, env=environment(tmp_path), check=2).stderr
        assert "report_to: wandb has no account" in told, words
        assert not (folder / ".cdpo").exists(), words
    told = run_cdpo("doctor", cwd=folder, env=environment(tmp_path), check=None).stdout
    assert "missing  report_to: wandb has no account" in told
    assert "ok       report_to: tensorboard 2." in told
    offline = environment(tmp_path, WANDB_MODE="offline")
    assert "ok       report_to: wandb 0." in run_cdpo("doctor", cwd=folder, env=offline, check=None).stdout


@pytest.mark.slow
def test_a_run_per_training_step_and_no_secret_in_any(tmp_path: Path) -> None:
    """SFT on two processes, of which one tells; wandb offline."""
    folder = project(tmp_path, ALL)
    services = folder / "configs/services/huggingface.yaml"
    services.parent.mkdir()
    services.write_text(f"kind: local\ntoken: {WRITTEN}\n")
    services.chmod(0o600)
    given = environment(tmp_path, WANDB_MODE="offline", **SECRETS)
    run_cdpo("execute", "--smoke", cwd=folder, env=given)
    assert not [name for name in ("wandb", "trackio", "tensorboard") if (folder / ".cdpo" / name).exists()]
    (folder / "configs/devices.yaml").write_text(ALL + "pipelines: {SFT: {processes: 2}}\n")
    run_cdpo("prep", cwd=folder, env=given)
    told = run_cdpo("execute", "--display", "json", cwd=folder, env=given).stdout
    events = [json.loads(line) for line in told.splitlines()]
    assert not [event for event in events if event["event"] == "note" and "report_to" in event["text"]]

    steps = [path for name in ("SFT", "RM", "DPO") for path in (folder / f".cdpo/steps/{name}").iterdir()]
    assert len(steps) == 3
    keys = {json.loads((path / "manifest.json").read_text())["key"][:32] for path in steps}
    assert {path.name.rpartition("-")[2] for path in (folder / ".cdpo/wandb").glob("offline-run-*")} == keys
    shown = {path.name for path in (folder / ".cdpo/tensorboard/watched").iterdir()}
    assert shown == {f"{path.parent.name}-{path.name}" for path in steps}
    assert all(len(list(path.iterdir())) == 1 for path in (folder / ".cdpo/tensorboard/watched").iterdir())
    with sqlite3.connect(folder / ".cdpo/trackio/cdpo.db") as found:
        runs = found.execute("SELECT run_id, count(*), count(DISTINCT step) FROM metrics GROUP BY run_id").fetchall()
        groups = {json.loads(each)["_Group"] for (each,) in found.execute("SELECT config FROM configs")}
    assert {key for key, _, _ in runs} == keys
    assert sorted(count for _, count, _ in runs) == sorted(count for _, _, count in runs) == [2, 2, 3]
    assert groups == {"watched"}

    for path in (path for path in (folder / ".cdpo").rglob("*") if path.is_file()):
        held = path.read_bytes()
        assert not [each for each in (WRITTEN, *SECRETS.values()) if each.encode() in held], path
