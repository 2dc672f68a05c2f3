"""What `cdpo reproduce` says where there is nothing to make again, or not all of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_cdpo, write_project

STEP: dict[str, Any] = {
    "pipeline": "PREP",
    "name": "pairs",
    "key": "a" * 64,
    "version": 2,
    "params": {"rule": "auto"},
    "seed": None,
    "inputs": {"source": {"files": ["pairs.jsonl"], "sha256": "f" * 64}},
}
SFT = {
    **STEP,
    "pipeline": "SFT",
    "key": "b" * 64,
    "version": 1,
    "params": {"learning_rate": 1e-3},
    "seed": 0,
    "inputs": {"data": {"step": "a" * 64}, "model": {"built": {"kind": "tiny", "seed": 0}}},
}
RECIPE: dict[str, Any] = {
    "format": 1,
    "cdpo": "0.1.0",
    "run": "SFT_tiny\nmodels: {}",
    "tag": "mine",
    "method": "SFT",
    "model": "tiny",
    "dataset": "pairs",
    "seed": 0,
    "steps": [STEP, SFT],
    "metrics": {},
}


def say(tmp_path: Path, recipe: Any, code: int, *, name: str = "card") -> str:
    """What reproduce says of a folder with this recipe, as one text."""
    (tmp_path / "card").mkdir(exist_ok=True)
    (tmp_path / "card" / "cdpo.json").write_text(json.dumps(recipe))
    done = run_cdpo("reproduce", name, "--to", "again", cwd=tmp_path, check=code)
    return done.stdout + done.stderr


def test_files_are_looked_for_in_the_new_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert "cannot be had: ./pairs.jsonl, the maker's own data, sha256 ffff" in say(tmp_path, RECIPE, 1)
    (tmp_path / "again" / "pairs.jsonl").write_text('{"prompt": "x", "chosen": "b", "rejected": "c"}\n')
    said = say(tmp_path, RECIPE, 1)
    assert "what is here is another one, sha256 " in said
    assert "OTHER KEY  PREP" in said
    assert (tmp_path / "again/configs/tasks.yaml").read_text().count("models:") == 2, "one of them in a comment"


def test_a_function_of_somebody_else_is_named_before_it_runs(tmp_path: Path) -> None:
    plugin = {"rule_plugin": {"plugin": "os:system", "sha256": "e" * 64}}
    step = {**STEP, "params": {"rule": "plugin"}, "inputs": {**STEP["inputs"], **plugin}}
    said = say(tmp_path, {**RECIPE, "steps": [step, SFT]}, 1)
    assert "it runs a program that is not cdpo's: os:system" in said
    assert "cannot be had: os:system, the maker's own function, sha256 eeee" in said


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format": 9}, "is of another release"),
        ({"steps": None}, "is not as cdpo writes it"),
        ({"steps": [{**SFT, "inputs": {"data": {"step": "z"}}}]}, "is not as cdpo writes it"),
        ({"steps": [STEP, {**SFT, "params": {"learning_rate": -1}}]}, "SFT of this release has other parameters"),
        ({"steps": []}, "has no steps"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    told = say(tmp_path, {**RECIPE, **change}, 1)
    assert said in told
    assert "Traceback" not in told


def test_what_was_never_published_is_told(tmp_path: Path) -> None:
    write_project(tmp_path, "")
    assert "neither OWNER/RUN@TAG nor a folder" in say(tmp_path, RECIPE, 2, name="nothing")
    assert "has no local/nothing@mine" in say(tmp_path, RECIPE, 2, name="local/nothing@mine")
    assert "is no finished step" in say(tmp_path, RECIPE, 1, name="configs")
