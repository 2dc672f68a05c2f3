"""From tasks.yaml to results, by the commands that a user types."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import run_cdpo, write_project

COUNTS = {"PREP": 1, "REFERENCE": 1, "EVALREWARD_CHOSEN": 1, "SFT": 1, "RM": 1, "DPO": 1, "GEN": 2, "EVALREWARD": 2}


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    shutil.copytree(project, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def test_every_step_is_finished_once_and_a_second_execute_runs_nothing(project: Path) -> None:
    steps = project / ".cdpo" / "steps"
    assert {room.name: len(list(room.iterdir())) for room in steps.iterdir()} == COUNTS
    before = {path: path.stat().st_mtime_ns for path in steps.rglob("*")}
    done = run_cdpo("execute", "--display", "json", cwd=project)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [event for event in events if event["event"] == "step_started"]
    assert {path: path.stat().st_mtime_ns for path in steps.rglob("*")} == before


def test_plan_and_status_for_programs(project: Path) -> None:
    plan = json.loads(run_cdpo("plan", "--json", cwd=project).stdout)
    assert [run["name"] for run in plan["runs"]] == [
        "SFT_tiny_small_s0",
        "DPO_tiny_small_beta0.1_learning_rate0.001_max_steps2_batch_size8_s0",
    ]
    keys = {step["key"] for step in plan["steps"]}
    assert all(step["state"] == "cached" and set(step["inputs"]) <= keys for step in plan["steps"])
    assert all(set(run) == {"name", "tag", "seed", "steps"} and set(run["steps"]) <= keys for run in plan["runs"])
    status = json.loads(run_cdpo("status", "--json", cwd=project).stdout)
    assert {step["key"] for step in status["steps"]} == keys
    assert {step["state"] for step in status["steps"]} == {"done"}


def test_results_in_all_three_forms_hold_the_same_numbers(project: Path) -> None:
    found = json.loads(run_cdpo("results", "--json", cwd=project).stdout)
    runs = {run["name"].split("_")[0]: run for run in found["runs"]}
    assert set(runs) == {"SFT", "DPO"}
    gold = runs["DPO"]["metrics"]["gold/mean"]
    assert gold["low"] <= gold["mean"] <= gold["high"]
    assert gold["n"] == 24
    assert "seed" not in found["groups"][0]
    assert found["groups"][0]["seeds"] == [0]
    rows = list(csv.DictReader(io.StringIO(run_cdpo("results", "--csv", cwd=project).stdout)))
    same = [row for row in rows if row["name"] == runs["DPO"]["name"] and row["metric"] == "gold/mean"]
    assert float(same[0]["mean"]) == pytest.approx(gold["mean"], abs=1e-12)
    table = run_cdpo("results", cwd=project).stdout
    assert "95 % interval" in table
    assert "gold/" in table


def test_compare_is_paired_by_prompt(project: Path) -> None:
    name = "DPO_tiny_small_beta0.1_learning_rate0.001_max_steps2_batch_size8_s0"
    found = json.loads(run_cdpo("compare", name, "SFT_tiny_small_s0", "--json", cwd=project).stdout)
    assert found["metrics"]["gold/mean"]["n"] == 24
    wrong = run_cdpo("compare", name, "SFT_tiny_smal_s0", cwd=project, check=None)
    assert wrong.returncode in (1, 2)
    assert "SFT_tiny_small_s0" in wrong.stderr


def test_logs_and_why_find_a_step_by_key_and_by_name(project: Path) -> None:
    plan = json.loads(run_cdpo("plan", "--json", cwd=project).stdout)
    key = next(step["key"] for step in plan["steps"] if step["pipeline"] == "DPO")
    assert run_cdpo("logs", key[:8], cwd=project).stdout == run_cdpo("logs", "DPO/", cwd=project).stdout
    why = run_cdpo("why", key[:12], cwd=project).stdout
    assert key in why
    assert "beta" in why
    assert '{"built": {"kind": "tiny", "seed": 0}}' in run_cdpo("why", "SFT/", cwd=project).stdout
    assert "no step fits" in run_cdpo("why", "zzzz", cwd=project, check=1).stderr
    assert "which one?" in run_cdpo("why", "GEN/", cwd=project, check=1).stderr


def test_a_stage_that_is_misspelt_is_guessed(project: Path) -> None:
    wrong = run_cdpo("execute", "--only", "sft", cwd=project, check=2).stderr
    assert "--only: the plan has no sft (did you mean 'SFT'?)" in wrong
    assert "--only names no pipeline" in run_cdpo("execute", "--only", "", cwd=project, check=2).stderr


def test_editing_one_value_reruns_its_cone_alone(copied: Path) -> None:
    tasks = copied / "configs" / "tasks.yaml"
    tasks.write_text(tasks.read_text().replace("beta: [0.1]", "beta: [0.1, 0.3]"))
    plan = json.loads(run_cdpo("plan", "--json", cwd=copied).stdout)
    run = [(step["pipeline"], step["why"]) for step in plan["steps"] if step["state"] == "run"]
    assert run == [("DPO", "new: beta=0.3"), ("GEN", "parent is new"), ("EVALREWARD", "parent is new")]


def test_redo_sets_a_step_aside(copied: Path) -> None:
    run_cdpo("redo", "EVALREWARD/SFT_tiny_small", cwd=copied)
    plan = json.loads(run_cdpo("plan", "--json", cwd=copied).stdout)
    assert [step["pipeline"] for step in plan["steps"] if step["state"] == "run"] == ["EVALREWARD"]


def test_a_copied_store_and_an_imported_one_are_as_good(copied: Path, tmp_path: Path) -> None:
    other = write_project(tmp_path / "other", (copied / "configs" / "tasks.yaml").read_text())
    shutil.copytree(copied / "configs", other / "configs", dirs_exist_ok=True)
    assert "added 10 steps" in run_cdpo("import", copied / ".cdpo", cwd=other).stdout
    assert "added 0 steps" in run_cdpo("import", copied / ".cdpo", cwd=other).stdout
    plan = json.loads(run_cdpo("plan", "--json", cwd=other).stdout)
    assert {step["state"] for step in plan["steps"]} == {"cached"}


def test_clear_shows_asks_and_deletes_exactly_that(copied: Path) -> None:
    asked = run_cdpo("clear", "-t", "first", cwd=copied, check=None)
    assert asked.returncode == 2  # no answer on standard input
    assert "nothing is deleted: there is nobody to ask here, and `--yes` was not said" in asked.stderr
    assert len(list((copied / ".cdpo" / "steps").glob("*/*"))) == 10
    shown = [line for line in asked.stdout.splitlines() if line.startswith("step")]
    assert len(shown) == 10
    run_cdpo("clear", "-t", "first", "--yes", cwd=copied)
    assert not list((copied / ".cdpo" / "steps").glob("*/*"))
    assert run_cdpo("clear", "-t", "first", "--yes", cwd=copied, check=1).stderr.startswith("no run of tag")


def test_evicted_weights_are_remade_only_where_they_are_needed(copied: Path) -> None:
    run_cdpo("gc", "--weights", "--yes", cwd=copied)
    status = json.loads(run_cdpo("status", "--json", cwd=copied).stdout)
    assert {step["pipeline"] for step in status["steps"] if step["state"] == "evicted"} == {"SFT", "DPO", "RM"}
    done = run_cdpo("execute", "--display", "json", cwd=copied)
    assert not [line for line in done.stdout.splitlines() if '"step_started"' in line]


def test_init_in_an_empty_folder_plans(tmp_path: Path) -> None:
    run_cdpo("init", cwd=tmp_path)
    assert (tmp_path / "configs" / "tasks.yaml").exists()
    assert "8 runs, 27 steps" in run_cdpo("plan", cwd=tmp_path).stdout
    assert not (tmp_path / ".cdpo").exists()
    assert (tmp_path / ".gitignore").read_text() == ".cdpo/\nconfigs/services/\n"
    again = run_cdpo("init", cwd=tmp_path).stdout
    assert "written" not in again
    (tmp_path / ".gitignore").write_text(".cdpo/\n")
    assert "add configs/services/, which" in run_cdpo("init", cwd=tmp_path).stdout


def test_doctor_and_schema(project: Path) -> None:
    assert "2 runs" in run_cdpo("doctor", cwd=project).stdout
    schema = json.loads(run_cdpo("schema", cwd=project).stdout)
    assert "DPO" in schema["$defs"]["experiment"]["properties"]


def test_mistakes_end_with_2_and_write_nothing(tmp_path: Path) -> None:
    none = run_cdpo("prep", cwd=tmp_path, check=2)
    assert "cdpo init" in none.stderr
    write_project(tmp_path, "tag: t\npipelines: [SFT]\nmodel: [tiny]\ndataset: [playground]\ntasks: [{pipelin: SFT}]\n")
    wrong = run_cdpo("execute", cwd=tmp_path, check=2)
    assert wrong.stderr.startswith("configs/tasks.yaml:5:9: tasks[0].pipeline: is required and missing")
    assert "Traceback" not in wrong.stderr
    assert not (tmp_path / ".cdpo").exists()
    assert run_cdpo("no-such-command", cwd=tmp_path, check=2).stderr


def test_one_run_by_hand_shares_the_steps_of_the_matrix(copied: Path) -> None:
    words = [
        "-m",
        "tiny",
        "-d",
        "small",
        "-t",
        "hand",
        "--learning_rate",
        "2e-3",
        "--max_steps",
        "2",
        "--batch_size",
        "8",
    ]
    done = run_cdpo("sft", *words, "--display", "json", cwd=copied)
    assert not [line for line in done.stdout.splitlines() if '"step_started"' in line]
    assert "SFT_tiny_small" in done.stderr
    wrong = run_cdpo("sft", *words, "--learning_rat", "1", cwd=copied, check=2)
    assert "did you mean 'learning_rate'?" in wrong.stderr
