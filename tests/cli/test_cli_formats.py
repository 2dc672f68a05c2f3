"""Data that is no preference: prompts to answer, responses to imitate."""

import json
from pathlib import Path

import pytest

from tests.conftest import run_cdpo, write_project

TASKS = """\
tag: formats
pipelines: [SFT, DPO, GEN, EVALREWARD]
model: [tiny]
dataset: [./rows.jsonl]
tasks: [{pipeline: METHOD}]
SFT: {max_steps: 2, batch_size: 4}
GEN: {max_new_tokens: 4}
EVALREWARD: {reward: './my.py:score'}
"""
REWARD = "def score(prompts, responses):\n    return [float(len(each)) for each in responses]\n"


def project(folder: Path, method: str, rows: list[dict[str, str]]) -> Path:
    write_project(folder, TASKS.replace("METHOD", method))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my.py").write_text(REWARD)
    return folder


def prompts(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Name {at} red fruits"} for at in range(count)]


def imitated(count: int) -> list[dict[str, str]]:
    return [{**row, "completion": f"apple and cherry {at}"} for at, row in enumerate(prompts(count))]


@pytest.mark.slow
def test_prompts_are_answered_and_scored_with_nothing_to_compare(tmp_path: Path) -> None:
    folder = project(tmp_path, "BASE", prompts(40))
    run_cdpo("execute", cwd=folder)
    (run,) = json.loads(run_cdpo("results", "--json", cwd=folder).stdout)["runs"]
    assert run["metrics"]["reward/mean"]["n"] == 4
    assert "winrate/chosen" not in run["metrics"]
    assert "winrate" not in run_cdpo("results", cwd=folder).stdout


@pytest.mark.slow
def test_responses_to_imitate_train_a_policy(tmp_path: Path) -> None:
    folder = project(tmp_path, "SFT", imitated(60))
    run_cdpo("execute", cwd=folder)
    (run,) = json.loads(run_cdpo("results", "--json", cwd=folder).stdout)["runs"]
    assert run["metrics"]["winrate/chosen"]["n"] == 6
    assert run["metrics"]["loss"]["n"] == 6


@pytest.mark.parametrize(
    "method, rows, said",
    [
        ("SFT", prompts(40), "SFT needs chosen responses, and PREP/.* has prompts, and no responses"),
        ("DPO, beta: 0.1", imitated(40), "DPO needs rejected responses, and .* has responses to imitate"),
        ("SFT, noise_type: label_switching, noise_level: 0.1", imitated(40), "SFT needs rejected responses"),
    ],
)
def test_what_does_not_serve_a_method_is_refused_by_prep(
    tmp_path: Path, method: str, rows: list[dict[str, str]], said: str
) -> None:
    import re

    folder = project(tmp_path, method, rows)
    found = run_cdpo("prep", cwd=folder, check=2).stderr
    assert re.search(said, found), found
