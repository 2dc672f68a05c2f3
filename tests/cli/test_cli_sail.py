"""SAIL's methods and `select`, from tasks.yaml to results, by the commands that a user types."""

import json
from pathlib import Path

import pytest

import cdpo
from tests.cli.conftest import DATASETS
from tests.conftest import run_cdpo, write_project

HEAD = "tag: t\npipelines: [SFT, DPO]\nmodel: [tiny]\ndataset: [small]\nSFT: {learning_rate: 2e-3, max_steps: 2}\n"
SHORT = "max_steps: 2, batch_size: 8"
TASKS = f"""\
tag: sweep
pipelines: [SFT, DPO, GEN, EVALREWARD]
model: [tiny]
dataset: [small]
seed: [0, 1]
tasks:
  - {{pipeline: SFT}}
  - {{pipeline: MIX, beta: 0.1, r: 0.2, rho: 0.2, p: 0.2, pi: 0.2, g: 0.2, gamma: 0.3, learning_rate: [1e-4, 1e-2]}}
SFT: {{learning_rate: 2e-3, {SHORT}}}
RM: {{learning_rate: 1e-3, {SHORT}}}
MIX: {{{SHORT}, max_new_tokens: 8, reward: {{step: RM}}}}
GEN: {{split: [tune, eval], max_new_tokens: 8}}
select: {{metric: gold/mean, over: learning_rate}}
"""


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("{pipeline: DDP, beta: 0.1, r: 1.2, rho: 0.2}", "tasks[0].r: should be less than 1, not 1.2"),
        ("{pipeline: DPR, beta: 0.1, g: 0.1, gamma: 1}", "tasks[0]: DPR needs a `reward`"),
        ("{pipeline: DPR, beta: 0.1, g: 1, gamma: 1, reward: U}", "tasks[0].g: should be less than 1, not 1"),
        (
            "{pipeline: MIX, beta: 0.1, r: 0.5, rho: 1, p: 0.3, pi: 1, g: 0.2, gamma: 1, reward: {step: RM}}",
            "tasks[0]: r + p + g must be below 1, and 0.5 + 0.3 + 0.2 = 1",
        ),
    ],
)
def test_prep_refuses_what_is_no_mixture_with_its_line(tmp_path: Path, task: str, said: str) -> None:
    folder = write_project(tmp_path, HEAD + f"tasks: [{task}]\n", datasets=DATASETS)
    shown = run_cdpo("prep", cwd=folder, check=2).stderr
    assert "tasks.yaml:6:" in shown
    assert said in shown
    assert not (folder / ".cdpo").exists()


@pytest.mark.slow
def test_prep_wants_room_for_the_policys_responses(tmp_path: Path) -> None:
    task = "tasks: [{pipeline: DPP, beta: 0.1, p: %s, pi: 0.2, max_new_tokens: 505}]\n"
    folder = write_project(tmp_path, HEAD + task % 0.3, datasets=DATASETS)
    shown = run_cdpo("prep", cwd=folder, check=2).stderr
    assert "64 no room for max_new_tokens" in shown
    assert "lower max_new_tokens" in shown
    # with nothing to sample it is DPO, and the rows are DPO's
    folder = write_project(tmp_path, HEAD + task % 0.0, datasets=DATASETS)
    assert "prepared 1 run" in run_cdpo("prep", cwd=folder).stdout


@pytest.mark.slow
def test_a_sweep_of_a_mixture_is_chosen_on_tune_and_reported_on_eval(tmp_path: Path) -> None:
    folder = write_project(tmp_path, TASKS, datasets=DATASETS)
    run_cdpo("execute", "--display", "plain", cwd=folder)
    rooms = {room.name: len(list(room.iterdir())) for room in (folder / ".cdpo" / "steps").iterdir()}
    assert rooms == {"PREP": 1, "SFT": 2, "RM": 1, "REFERENCE": 2, "MIX": 4, "GEN": 12, "EVALREWARD": 12}
    everything = json.loads(run_cdpo("results", "--all", "--json", cwd=folder).stdout)
    assert len(everything["runs"]) == 12
    means = {
        group["params"]["learning_rate"]: group["metrics"]["gold/mean"]["mean"]
        for group in everything["groups"]
        if group["method"] == "MIX" and group["params"]["GEN.split"] == "tune"
    }
    best = min(rate for rate, mean in means.items() if mean >= max(means.values()) - 1e-6)
    found = json.loads(run_cdpo("results", "--json", cwd=folder).stdout)
    (selection,) = found["selections"]
    assert selection["over"] == {"learning_rate": best}
    assert selection["mean"] == pytest.approx(means[best])
    shown = {(run["method"], run["params"].get("learning_rate"), run["params"]["GEN.split"]) for run in found["runs"]}
    assert shown == {("SFT", None, "eval"), ("MIX", best, "eval")}
    assert {run["metrics"]["gold/mean"]["n"] for run in found["runs"]} == {24}
    assert [(each["a_label"], each["b_label"]) for each in found["comparisons"]] == [("MIX", "SFT")]
    text = run_cdpo("results", cwd=folder).stdout
    assert "sweep: swept values chosen on tune, by the highest gold/mean" in text
    assert "MIX minus SFT" in text
    assert len(cdpo.results(store=folder / ".cdpo")) == 4
    # another metric is another choice, and nothing is run for it
    folder = write_project(folder, TASKS.replace("gold/mean", "rewards/margins"), datasets=DATASETS)
    events = run_cdpo("execute", "--display", "json", cwd=folder).stdout.splitlines()
    assert not [event for event in map(json.loads, events) if event["event"] == "step_started"]
    assert json.loads(run_cdpo("results", "--json", cwd=folder).stdout)["selections"][0]["metric"] == "rewards/margins"


@pytest.mark.slow
def test_one_run_by_hand(tmp_path: Path) -> None:
    folder = write_project(tmp_path, HEAD + "tasks: [{pipeline: SFT}]\n", datasets=DATASETS)
    words = ["-m", "tiny", "-d", "small", "-t", "hand", "-p", "DDP", "--beta", "0.1", "--r", "0.4", "--rho", "0.2"]
    words += ["--learning_rate", "1e-3", "--max_steps", "2", "--SFT.learning_rate", "1e-3", "--SFT.max_steps", "2"]
    assert "DDP_tiny_small_beta0.1_r0.4_rho0.2" in run_cdpo("dpo", *words, cwd=folder).stderr
