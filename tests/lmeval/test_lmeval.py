"""What LMEVAL does without lm-evaluation-harness: what it refuses, how it reads what that reports, its process."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdpo.child import Child
from cdpo.errors import StepError
from cdpo.lmeval.harness import PROCESS, look
from cdpo.lmeval.results import joined, tabulated, with_ids, write_results
from cdpo.pipeline import pipelines
from cdpo.report.reading import _Finished, _measured_by
from cdpo.score.scores import write_scores
from tests.conftest import run_cdpo, write_project

TASKS = """\
tag: bench
pipelines: [LMEVAL]
model: [tiny]
dataset: [small]
tasks: [{pipeline: BASE}]
LMEVAL: {tasks: [[hellaswag]]}
"""
DATASETS = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"


def interpreter(folder: Path, version: str) -> Path:
    """One that has a lm_eval of this version, as far as packages tell."""
    place = folder / f"lm_eval-{version}.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lm_eval\nVersion: {version}\n")
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed here")
def test_prep_refuses_where_there_is_none(tmp_path: Path) -> None:
    folder = write_project(tmp_path, TASKS, datasets=DATASETS)
    refused = run_cdpo("prep", cwd=folder, check=None)
    assert refused.returncode != 0
    assert "cannot be run here:\n  LMEVAL needs lm-evaluation-harness, and " in refused.stderr
    assert "pip install 'cdpo[lm-eval]'" in refused.stderr
    assert "`lm_eval: {python: ...}`" in refused.stderr
    said = run_cdpo("doctor", cwd=folder, check=None).stdout
    assert "optional lm-eval is absent: LMEVAL needs it" in said


@pytest.mark.parametrize(
    ("version", "fits"), [("0.4.12", False), ("0.4.13", True), ("0.4.20.dev1", True), ("0.5", False)]
)
def test_versions(tmp_path: Path, version: str, fits: bool) -> None:
    python = str(interpreter(tmp_path, version))
    if fits:
        assert look(python, [], None) == (version, {})
        return
    said = rf"LMEVAL needs lm_eval 0\.4\.13 or above, below 0\.5, and {python} has {version}: pip install"
    with pytest.raises(StepError, match=said):
        look(python, [], None)


def test_prep_asks_the_interpreter_of_devices(tmp_path: Path) -> None:
    python = interpreter(tmp_path / "environment", "0.4.1")
    folder = write_project(tmp_path / "project", TASKS, datasets=DATASETS, devices=f"lm_eval: {{python: {python}}}\n")
    assert f"and {python} has 0.4.1: pip install" in run_cdpo("prep", cwd=folder, check=None).stderr
    assert f"{python} has 0.4.1" in run_cdpo("doctor", cwd=folder, check=None).stdout


def test_an_interpreter_that_is_none() -> None:
    with pytest.raises(StepError, match="lm-eval's interpreter /nowhere/python does not start: No such file"):
        look("/nowhere/python", [], None)
    with pytest.raises(StepError, match="lm-eval ended with exit code 1 when it was asked for its version"):
        look("/bin/false", [], None)


def test_the_process_ends_with_who_started_it(tmp_path: Path) -> None:
    child = Child("lm-eval", PROCESS, str(interpreter(tmp_path, "0.4.13")), tmp_path / "log")
    child._input.close()
    assert child.process.wait(timeout=60) == 0
    child.close()


def sample(doc: int, kind: str = "none", **metrics: Any) -> dict[str, Any]:
    return {"doc_id": doc, "doc": {"question": "q"}, "filter": kind, "metrics": list(metrics), **metrics}


#: as lm-eval reports a task with two filters, a group of two with a subgroup, and a perplexity
FIRST = {
    "results": {
        "gsm": {
            "alias": "gsm",
            "exact_match,strict": 0.5,
            "exact_match_stderr,strict": 0.1,
            "exact_match,flexible": 1.0,
        },
        "ppl": {"alias": "ppl", "word_perplexity,none": 7.5, "word_perplexity_stderr,none": "N/A", "sample_len": 2},
    },
    "group_subtasks": {},
    "versions": {"gsm": 3.0, "ppl": 1},
    "samples": {
        "gsm": [
            sample(0, "strict", exact_match=0.0),
            sample(1, "strict", exact_match=1.0),
            sample(0, "flexible", exact_match=1.0),
            sample(1, "flexible", exact_match=True),
        ],
        "ppl": [sample(0, word_perplexity=[-20.5, 7]), sample(1, word_perplexity=[-3.5, 2])],
    },
    "lm_eval_version": "0.4.13",
}
SECOND = {
    "results": {
        "all": {"acc,none": 0.6, "macro,none": 0.9, "alias": "all"},
        "part": {"acc,none": 1.0},
        "a": {"acc,none": 1 / 3, "f1,none": 0.4},
        "b.1": {"acc,none": 1.0},
    },
    "groups": {"all": {"acc,none": 0.6, "acc_stderr,none": 0.1, "macro,none": 0.9}, "part": {"acc,none": 1.0}},
    "group_subtasks": {"all": ["a", "part"], "part": ["b.1"]},
    "versions": {"a": 1, "b.1": 1, "all": 2},
    "samples": {
        "a": [sample(0, acc=1.0, f1=1.0), sample(1, acc=0.0, f1=0.0), sample(2, acc=0.0, f1=0.0)],
        "b.1": [sample(0, acc=1.0), sample(1, acc=1.0)],
    },
    "lm_eval_version": "0.4.13",
}


def test_a_report_becomes_rows(tmp_path: Path) -> None:
    whole = with_ids(joined([FIRST, SECOND]))
    rows, metrics, left_out = tabulated(whole)
    assert list(metrics) == [
        "lm_eval/all/acc",
        "lm_eval/part/acc",
        "lm_eval/gsm/exact_match/strict",
        "lm_eval/gsm/exact_match/flexible",
    ]
    # a figure that is no mean over documents is not passed off as one
    assert left_out == ["lm_eval/a/f1", "lm_eval/all/macro", "lm_eval/ppl/word_perplexity"]
    assert [row["prompt_id"] for row in rows] == ["a:0", "a:1", "a:2", "b_1:0", "b_1:1", "gsm:0", "gsm:1"]
    assert {row["split"] for row in rows} == {"eval"}
    table = {name: [row[name] for row in rows] for name in rows[0]}
    none = [None] * 2
    assert table["lm_eval/all/acc"] == [1, 0, 0, 1, 1, *none]
    assert table["lm_eval/a/acc"] == [1, 0, 0, *none, *none]
    assert table["lm_eval/gsm/exact_match/strict"] == [None, None, None, *none, 0, 1]
    write_scores(tmp_path, rows)
    assert pq.read_table(tmp_path / "scores.parquet")["lm_eval/all/acc"].to_pylist() == table["lm_eval/all/acc"]
    write_results(tmp_path, whole)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert (kept["versions"], "samples" in kept) == ({"gsm": 3.0, "ppl": 1, "a": 1, "b.1": 1, "all": 2}, False)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "a.jsonl",
        "b.1.jsonl",
        "gsm.jsonl",
        "ppl.jsonl",
    ]
    assert len((tmp_path / "samples" / "gsm.jsonl").read_text().splitlines()) == 4


def test_nothing_that_is_a_mean() -> None:
    rows, metrics, left_out = tabulated(with_ids({**FIRST, "samples": {"ppl": FIRST["samples"]["ppl"]}}))  # type: ignore[index]
    assert (rows, metrics, left_out) == ([], {}, ["lm_eval/ppl/word_perplexity"])


def test_what_is_compared(tmp_path: Path) -> None:
    """Other lists of tasks, other weights in other types, the same tasks of lm-eval: to be compared; another version,
    other examples, other files: not."""

    def meaning(params: dict[str, Any], version: str = "0.4.13", files: str = "a", place: str = "/here") -> Any:
        manifest = {
            "params": {"tasks": ["a"], "num_fewshot": None, "dtype": "auto", **params},
            "inputs": {"model": {"step": "3" * 64}, "include_path": {"folder": place, "sha256": files}},
            "summary": {"lm_eval_version": version},
        }
        return _measured_by(_Finished("0" * 64, tmp_path, pipelines()["LMEVAL"], manifest, {}, ""))

    same = meaning({})
    assert meaning({"tasks": ["a", "b"], "dtype": "bf16", "template": "plain"}, place="/there") == same
    others = [meaning({"num_fewshot": 2}), meaning({"limit": 3}), meaning({}, "0.4.14"), meaning({}, files="b")]
    assert same not in others
