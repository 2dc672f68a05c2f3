"""Judges by the commands that a user types: from the tasks file to verdicts on which run is better."""

import json
from pathlib import Path

import pytest

from tests.conftest import DATA, run_cdpo, write_project
from tests.judge.judge_server import JudgeServer, longer

TASKS = """\
tag: judged
pipelines: [SFT, GEN, EVALGPT, WINRATE]
model: tiny
dataset: small
tasks: [{pipeline: BASE}, {pipeline: SFT}]
SFT: {learning_rate: 3e-3, max_steps: 5, batch_size: 8}
GEN: {max_new_tokens: 12}
EVALGPT: {judge: scripted, judge_template: choice}
WINRATE: {judge: scripted, judge_template: choice, against: BASE}
"""
SMALL = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
DEVICES = """\
cpu_workers: 2
judges:
  scripted:
    endpoints: [{url: '%s', api_key: JUDGE_KEY}]
    prices: {input: 1, output: 10}
    budget: 5
"""


@pytest.fixture(scope="module")
def judge():
    with JudgeServer(longer) as server:
        yield server


@pytest.fixture(scope="module")
def project(tmp_path_factory, judge):
    import os

    folder = write_project(tmp_path_factory.mktemp("project"), TASKS, datasets=SMALL, devices=DEVICES % judge.url)
    bare = {name: value for name, value in os.environ.items() if name != "JUDGE_KEY"}
    refused = run_cdpo("prep", cwd=folder, check=2, env=bare)
    assert "the environment variable JUDGE_KEY is not set" in refused.stderr
    os.environ["JUDGE_KEY"] = "sesame-7531"
    run_cdpo("prep", cwd=folder)
    return folder


@pytest.mark.slow
def test_plan_says_what_it_would_cost_before_and_after(project: Path, judge: JudgeServer) -> None:
    said = run_cdpo("plan", cwd=project).stdout
    line = next(each for each in said.splitlines() if each.startswith("judge scripted:"))
    # two runs of 24 prompts against the chosen responses, and one pair of runs, all in both orders
    assert "about 144 verdicts, at most $" in line
    assert line.endswith("$0.00 of $5.00 are spent")
    assert not judge.bodies
    run_cdpo("execute", cwd=project)
    asked = len(judge.bodies)
    assert 0 < asked <= 144
    assert "nothing to run" in run_cdpo("plan", cwd=project).stdout
    # the whole again, in another tag: nothing is asked
    text = (project / "configs" / "tasks.yaml").read_text()
    (project / "configs" / "again.yaml").write_text(text.replace("tag: judged", "tag: again"))
    run_cdpo("prep", "configs/again.yaml", cwd=project)
    run_cdpo("execute", "configs/again.yaml", cwd=project)
    assert len(judge.bodies) == asked


@pytest.mark.parametrize("limit, verdicts", [(10, 2 * (2 + 1) * 20), (1000, 2 * (2 + 1) * 48)])
def test_a_limit_is_one_of_prompts_and_all_responses_to_them_are_judged(
    project: Path, limit: int, verdicts: int
) -> None:
    text = TASKS.replace("tag: judged", "tag: limited").replace("choice", f"choice, limit: {limit}")
    (project / "configs" / "limited.yaml").write_text(text.replace("tokens: 12", "tokens: 12, samples: 2"))
    said = run_cdpo("plan", "configs/limited.yaml", cwd=project).stdout
    assert f"about {verdicts} verdicts, at most $" in said


@pytest.mark.slow
def test_all_with_all_by_the_judge(project: Path) -> None:
    run_cdpo("execute", cwd=project)
    found = json.loads(run_cdpo("compare", "--judge", "scripted", "-t", "judged", "--json", cwd=project).stdout)
    (pair,) = found["pairs"]
    assert pair["n"] == 24
    assert pair["wins"] + pair["ties"] + pair["losses"] == 24
    for form in ("--markdown", "--latex"):
        said = run_cdpo("compare", "--judge", "scripted", "-t", "judged", form, cwd=project).stdout
        assert "scripted" in said
    results = json.loads(run_cdpo("results", "-t", "judged", "--json", cwd=project).stdout)
    assert all("judge/winrate/chosen" in run["metrics"] for run in results["runs"])


def test_one_run_by_hand_is_judged_from_what_is_kept(project: Path, judge: JudgeServer) -> None:
    run_cdpo("execute", cwd=project)
    asked = len(judge.bodies)
    words = ["-m", "tiny", "-d", "small", "-t", "hand", "-p", "BASE", "--GEN.max_new_tokens", 12]
    run_cdpo("evalgpt", *words, "--judge", "scripted", "--judge_template", "choice", cwd=project)
    assert len(judge.bodies) == asked


def test_the_key_is_nowhere(project: Path) -> None:
    run_cdpo("execute", cwd=project)
    for path in project.rglob("*"):
        if path.is_file():
            assert b"sesame-7531" not in path.read_bytes(), path


def test_a_judge_is_checked_on_labels(project: Path, tmp_path: Path, judge: JudgeServer) -> None:
    rows = [
        {"input": f"question {at}", "output_1": "x" * (at + 1), "output_2": "y" * 5, "label": 1 if at < 8 else 2}
        for at in range(10)
    ]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(rows))
    found = json.loads(run_cdpo("judge-check", file, "--judge", "scripted", "--json", cwd=project).stdout)
    # the longer one wins: right are 5, 6 and 7 (label 1, longer than 5); 4 is a tie; 8 and 9 are longer and worse
    told = found["subsets"]["all"]
    assert told["n"] == 10
    assert told["accuracy"]["mean"] == pytest.approx(0.35)
    assert told["both_orders"] == pytest.approx(0.3)
    assert told["position"]["consistent"] == 1.0
    asked = len(judge.bodies)
    assert "accuracy" in run_cdpo("judge-check", file, "--judge", "scripted", cwd=project).stdout
    assert len(judge.bodies) == asked


@pytest.mark.skipif(not DATA.exists(), reason="no LLMBar beside the project")
def test_llmbar_is_read_whole(project: Path) -> None:
    files = sorted((DATA / "llmbar").glob("*.json"))
    found = json.loads(run_cdpo("judge-check", *files, "--judge", "scripted", "--json", cwd=project).stdout)
    labels = [
        (len(row["output_1"]), len(row["output_2"]), row["label"]) for f in files for row in json.loads(f.read_text())
    ]
    right = [0.5 if a == b else float((a > b) == (label == 1)) for a, b, label in labels]
    assert found["subsets"]["all"]["n"] == 419
    assert found["subsets"]["all"]["accuracy"]["mean"] == pytest.approx(sum(right) / 419)


@pytest.mark.parametrize(
    "words, why",
    [
        (["--judge", "nobody"], "where is the judge 'nobody' to be asked?"),
        ([], "name the judge: --judge NAME"),
        (["--judge", "scripted", "--judge-template", "choise"], "no judge_template is called 'choise'"),
        (["--model", "nothing"], "no model is called 'nothing'"),
        (["--judge", "scripted", "--judge-template", "rating"], "judge_template asks for a rating"),
    ],
    ids=["unknown", "none", "template", "model", "rating"],
)
def test_what_cannot_be_checked(project: Path, tmp_path: Path, words: list[str], why: str) -> None:
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps([{"input": "q", "output_1": "a", "output_2": "b", "label": 1}]))
    done = run_cdpo("judge-check", file, *words, cwd=project, check=None)
    assert done.returncode != 0
    assert why in done.stderr
    assert "Traceback" not in done.stderr
