"""What is published is made again from an empty folder: several datasets, models, rewards; what is gone is named."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdpo.data.playground import make
from cdpo.models import build
from tests.conftest import run_cdpo, write_project
from tests.hub.hub_content import fill, folder_files, json_lines
from tests.hub.hub_server import WRITER, Hub

DATASETS = """\
both: {mix: [{dataset: ours, n: 12}, {dataset: theirs}]}
ours: {path: './parts/*.jsonl', eval_ratio: 0.2}
theirs: {id: lab/rows, eval_split: test, limit: 20}
"""
#: the policy, its reward model and the one that scores it are of three models
TASKS = """\
tag: mine
pipelines: [RM, DPO, GEN, EVALREWARD, PUSH]
model: [lab/policy]
dataset: [both]
seed: [3]
tasks:
  - {pipeline: BASE}
  - {pipeline: DPR, beta: 0.1, g: 0.5, gamma: 0.3, reward: {step: RM, model: lab/judge, seed: 1}}
RM: {max_steps: 2, batch_size: 4}
DPR: {max_steps: 2, batch_size: 4, max_new_tokens: 4}
GEN: {max_new_tokens: 4}
EVALREWARD: {reward: ./scorer}
"""
HUGGING_FACE = "{kind: huggingface, organization: lab}\n"
RUN = "DPR_lab-policy_both_beta0.1_g0.5_gamma0.3_rewardstepRM-modellab-judge-seed1_s3"


def rows(seed: int, count: int) -> str:
    names = ("prompt", "chosen", "rejected")
    return json_lines([{name: row[name] for name in names} for row in make(count, 1, 1, seed)["train"]])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as server:
        for seed, name in enumerate(("policy", "judge")):
            build({"kind": "tiny", "seed": seed}, tmp_path / name)
            fill(server, "models", f"lab/{name}", folder_files(tmp_path / name))
        fill(server, "datasets", "lab/rows", {"train.jsonl": rows(1, 30), "test.jsonl": rows(2, 4)})
        yield server


def project(folder: Path, policy: Path) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_project(folder, TASKS, datasets=DATASETS, **{"services/huggingface": HUGGING_FACE})
    (folder / "parts").mkdir()
    for seed, name in enumerate(("a", "b"), start=4):
        (folder / "parts" / f"{name}.jsonl").write_text(rows(seed, 15))
    scorer = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    scorer.save_pretrained(folder / "scorer")
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder / "scorer")
    return folder


@pytest.mark.slow
def test_what_is_published_is_made_again_of_several_datasets_models_and_rewards(tmp_path: Path, hub: Hub) -> None:
    env = hub.environment(tmp_path / "cache", WRITER)
    folder = project(tmp_path / "first", tmp_path / "policy")
    run_cdpo("execute", cwd=folder, env=env)
    elsewhere = hub.environment(tmp_path / "another cache", WRITER)
    again = tmp_path / "again"
    words = ("reproduce", f"lab/{RUN}@mine", "--to", "again")
    said = run_cdpo(*words, cwd=tmp_path, env=elsewhere, check=1).stdout
    assert "cannot be had: ./ours-files/ with a.jsonl, b.jsonl, the maker's own data, sha256 of all " in said
    assert "cannot be had: ./scorer, the maker's own model, sha256 " in said
    assert said.count("cannot be had") == 2
    lock = json.loads((again / "configs" / "hub.lock.json").read_text())
    commits = {name.partition("@")[0] for name in lock if name != "format"}
    assert commits == {"model lab/policy", "model lab/judge", "dataset lab/rows"}
    shutil.copytree(folder / "parts", again / "ours-files")
    shutil.copytree(folder / "scorer", again / "scorer")
    # what the names stand for has changed since
    for kind, name in (("models", "policy"), ("models", "judge"), ("datasets", "rows")):
        fill(hub, kind, f"lab/{name}", {"config.json": "{}", "train.jsonl": rows(3, 9), "other.txt": "x"})
    said = run_cdpo(*words, cwd=tmp_path, env=elsewhere).stdout
    assert said.count("same key") == 9
    assert "OTHER KEY" not in said
    # the network is not asked again
    run_cdpo("execute", cwd=again, env={**elsewhere, "HF_HUB_OFFLINE": "1"})
    figures = run_cdpo(*words, cwd=tmp_path, env=elsewhere).stdout
    assert "reward/mean" in figures
    assert "figures are the same to the last digit" in figures
    assert "differs" not in figures
    # a step of the store, beside which all that it was made of lies
    (step,) = (folder / ".cdpo" / "steps" / "DPR").iterdir()
    said = run_cdpo("reproduce", step / "out", "--to", tmp_path / "of a step", cwd=tmp_path, env=elsewhere).stdout
    assert "cannot be had" not in said
    assert "OTHER KEY" not in said
    # responses of the model as it is: there is no model beside them
    said = run_cdpo(
        "reproduce", "lab/BASE_lab-policy_both_s3@mine", "--to", "base", cwd=tmp_path, env=elsewhere, check=1
    )
    assert said.stdout.count("cannot be had") == 2
    # what is gone from the Hub is named, all of it
    for kind, name in (("models", "judge"), ("datasets", "rows")):
        (hub.folder / "repos" / kind / "lab" / f"{name}.json").unlink()
    said = run_cdpo(
        "reproduce",
        step,
        "--to",
        tmp_path / "late",
        cwd=tmp_path,
        env=hub.environment(tmp_path / "third cache", WRITER),
        check=1,
    ).stdout
    gone = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("cannot be had")]
    assert [line.partition("@")[0] for line in sorted(gone)] == ["dataset lab/rows", "model lab/judge"]
    assert all("there is none at" in line for line in gone)
