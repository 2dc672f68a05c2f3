"""Bradley-Terry labels from the command line: label-bt and its script, the matrix, and what `prep` refuses."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cdpo.data.prepared import read_split
from tests.conftest import ROOT, run_cdpo, write_project

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 32, tune: 8, eval: 12}}\n"
ADDED = {"chosen_score", "rejected_score", "bt_prob"}


@pytest.fixture
def finished(project: Path, tmp_path: Path) -> Path:
    """A copy of the finished matrix of tests/cli, with its reward model as ./rm."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder, symlinks=True)
    (model,) = (folder / ".cdpo" / "steps" / "RM").iterdir()
    shutil.copytree(model / "out", folder / "rm")
    return folder


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_dataset_by_name_then_all_of_it_then_as_a_dataset_of_its_own(finished: Path) -> None:
    options = ("--score_model_id", "./rm", "--per_device_evalreward_batch_size", 5)
    said = run_cdpo("label-bt", "--run_name", "small", "--split", "default", *options, cwd=finished).stderr
    assert "train: 64 rows, the chosen response scores higher in" in said
    assert "written to labelled/small_rm; as a dataset: `dataset: [./labelled/small_rm]`" in said
    assert files(finished / "labelled" / "small_rm") == {"train.parquet", "labels.yaml"}
    rows = read_split(finished / "labelled" / "small_rm", "train")
    assert len(rows) == 64
    assert rows[0].keys() >= ADDED

    again = run_cdpo("label-bt", "--run_name", "small", *options, cwd=finished).stderr
    assert "1 to run" not in again
    assert "already there: labelled/small_rm" in again
    refused = run_cdpo("label-bt", "--run_name", "small", "--process_all_splits", *options, cwd=finished, check=2)
    assert (
        "labelled/small_rm is there already and is never written over; name another folder: --output" in refused.stderr
    )
    assert files(finished / "labelled" / "small_rm") == {"train.parquet", "labels.yaml"}

    fit = ("--bt_temperature", "fit", "--output", "all", "--process_all_splits")
    run_cdpo("label-bt", "--run_name", "small", *fit, *options, cwd=finished)
    assert files(finished / "all") == {"train.parquet", "tune.parquet", "eval.parquet", "labels.yaml"}
    about = yaml.safe_load((finished / "all" / "labels.yaml").read_text())
    assert about["bt_temperature"] > 0
    assert {split: found["rows"] for split, found in about["splits"].items()} == {"train": 64, "tune": 16, "eval": 24}

    tasks = """\
tag: second
pipelines: [DPO]
model: [tiny]
dataset: [./all]
tasks: [{pipeline: DPO, beta: 0.1, loss_type: dpo_pro, learning_rate: 1e-3, max_steps: 1}]
"""
    (finished / "configs" / "second.yaml").write_text(tasks)
    run_cdpo("execute", "configs/second.yaml", cwd=finished)


@pytest.mark.slow
def test_a_run_that_answered_its_responses_beside_the_labels(finished: Path) -> None:
    (run,) = [path.stem for path in (finished / ".cdpo" / "refs" / "first").iterdir() if path.stem.startswith("DPO")]
    script = [sys.executable, str(ROOT / "pipelines" / "evalreward_bt.py"), "--run_name", run, "--tag", "first"]
    script += ["--split", "default", "--score_model_id", "./rm", "--output", "labelled", "--reverse"]
    done = subprocess.run(script, cwd=finished, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "eval: 24 rows" in done.stderr
    assert {path.name for path in (finished / ".cdpo" / "refs").iterdir()} == {"first", "label-bt"}
    rows = read_split(finished / "labelled", "eval")
    assert files(finished / "labelled") == {"eval.parquet", "labels.yaml"}
    (gen,) = [path for path in (finished / ".cdpo" / "steps" / "GEN").iterdir() if path.name.startswith("DPO")]
    from cdpo.generate.responses import read_responses

    assert {row["prompt_id"]: row["response"] for row in rows} == {
        row["prompt_id"]: row["response"] for row in read_responses(gen / "out")
    }
    run_cdpo("label-bt", "--run_name", run, "--score_model_id", "./rm", "--split", "tune", "-o", "t", cwd=finished)
    tune = read_split(finished / "t", "tune")
    assert len(tune) == 16
    assert "response" not in tune[0]
    run_cdpo("label-bt", "--run_name", run, "--score_model_id", "./rm", "-o", "reward", cwd=finished)
    reward = {row["prompt_id"]: row["bt_prob"] for row in read_split(finished / "reward", "eval")}
    assert all(row["bt_prob"] == pytest.approx(1 - reward[row["prompt_id"]], abs=1e-9) for row in rows)


def write_rows(path: Path, *columns: str) -> None:
    rows = [{name: f"{name} {at}" for name in columns} for at in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A project with files of rows and a user's reward function."""
    folder = write_project(tmp_path, "tag: none\n", datasets=DATASETS)
    (folder / "my.py").write_text("def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n")
    write_rows(folder / "pairs.jsonl", "prompt", "chosen", "rejected")
    write_rows(folder / "odd.jsonl", "question", "chosen")
    return folder


def test_a_file_by_path_and_a_users_function(small: Path) -> None:
    words = ("--score_model_id", "./my.py:length", "--bt_temperature", 2)
    run_cdpo("label-bt", "--run_name", "./pairs.jsonl", *words, "-o", "out", cwd=small)
    for row in read_split(small / "out", "train"):
        assert row["chosen_score"] == len(row["chosen"][0]["content"])
        assert row["bt_prob"] == pytest.approx(1 / (1 + math.e)), "'rejected 7' is 2 letters longer than 'chosen 7'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run_name", "./odd.jsonl"], r"its columns \('question', 'chosen'\) are those of no format"),
        (["--run_name", "smal"], "smal: no run of .* and it is no dataset either: .*did you mean 'small'"),
        (["--run_name", "org/evaluations", "--tag", "t"], "under the tag t, .* a dataset of the Hub has no tag"),
        (["--run_name", "small", "--split", "test"], r"split: .*'train', 'tune' or 'eval'"),
        (["--run_name", "small", "--split", "eval", "--process_all_splits"], "give one of them"),
        (["--run_name", "small", "--bt_temperature", "warm"], r"bt_temperature: should be 'fit', not 'warm'\n"),
        (["--run_name", "small", "--bt_temperature", "-1"], r"bt_temperature: should be greater than 0, not -1\n"),
        (["--run_name", "small", "--split", "eval", "--bt_temperature", "fit"], "fitted on train"),
        (["--run_name", "small", "--score_model_id", "none"], "no reward is called 'none'"),
        (["--run_name", "small", "--score_model_id", "PP"], "beaver-7b-v1.0-reward@main: not in the cache"),
        (["--run_name", "small", "--output", "configs"], "configs is there already and is never written over"),
    ],
)
def test_what_label_bt_refuses(small: Path, words: list[str], said: str) -> None:
    model = [] if "--score_model_id" in words else ["--score_model_id", "./my.py:length"]
    done = run_cdpo("label-bt", *words, *model, cwd=small, check=2)
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (small / "labelled").exists()


@pytest.mark.slow
def test_a_matrix_labels_once_and_trains_on_it(small: Path) -> None:
    tasks = """\
tag: labels
pipelines: [SFT, DPO, EVALREWARD_BT]
model: [tiny]
dataset: [small]
tasks: [{pipeline: DPO, beta: 0.1, loss_type: [dpo_pr, dpo_pro]}]
SFT: {learning_rate: 1e-3, max_steps: 1, batch_size: 8}
DPO: {learning_rate: 1e-3, max_steps: 1, batch_size: 8}
EVALREWARD_BT: {reward: ./my.py:length, bt_temperature: 5}
"""
    write_project(small, tasks)
    assert "passed" in run_cdpo("execute", "--smoke", cwd=small).stderr
    done = run_cdpo("execute", "--display", "json", cwd=small)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    started = [event["pipeline"] for event in events if event["event"] == "step_started"]
    assert sorted(started) == ["DPO", "DPO", "EVALREWARD_BT", "PREP", "REFERENCE", "SFT"]
    (labels,) = (small / ".cdpo" / "steps" / "EVALREWARD_BT").iterdir()
    assert len(read_split(labels / "out", "train")) == 32


def test_prep_refuses_columns_that_the_data_lacks_at_their_lines(small: Path) -> None:
    tasks = """\
tag: labels
pipelines: [SFT, DPO]
model: [tiny]
dataset: [./pairs.jsonl]
tasks:
  - {pipeline: DPO, beta: 0.1, loss_type: [sigmoid, dpo_pro]}
  - {pipeline: DPO, beta: 0.2, weight_column: w}
  - {pipeline: DPO, beta: 0.3, redraw_labels: true}
  - {pipeline: DPO, beta: 0.4, margin_column: rejected}
SFT: {learning_rate: 1e-3, noise_type: bt_noise_flip, noise_level: 0.1, redraw_labels: true}
DPO: {learning_rate: 1e-3}
"""
    said = run_cdpo("prep", cwd=write_project(small, tasks), check=2).stderr
    lines = [line for line in said.splitlines() if "tasks.yaml:" in line]
    assert [line.split(": ")[:2] for line in lines] == [
        ["configs/tasks.yaml:6:53", "tasks[0].loss_type[1]"],
        ["configs/tasks.yaml:7:47", "tasks[1].weight_column"],
        ["configs/tasks.yaml:8:47", "tasks[2].redraw_labels"],
        ["configs/tasks.yaml:9:47", "tasks[3].margin_column"],
        ["configs/tasks.yaml:10:88", "SFT.redraw_labels"],
    ]
    assert (
        "reads the column 'bt_prob', and the data has none; there are: prompt_id, prompt, chosen, rejected" in lines[0]
    )
    assert lines[0].endswith("List EVALREWARD_BT in `pipelines`, or label the dataset with `cdpo label-bt`")
    assert "reads the column 'w'" in lines[1]
    assert "label-bt" not in lines[1]
    assert lines[3].endswith("reads the column 'rejected', which does not hold numbers")
    assert not (small / ".cdpo" / "plans").exists()
