"""A run is published, and what was published is trained on again: a folder, then the Hub."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_cdpo, write_project
from tests.hub.hub_content import fill, folder_files
from tests.hub.hub_messages import Refused
from tests.hub.hub_server import READER, WRITER, Hub
from tests.hub.test_hub_push import tree

TASKS = """\
tag: mine
pipelines: [SFT, GEN, EVALREWARD, PUSH]
model: [tiny]
dataset: [./pairs.jsonl]
tasks: [{pipeline: SFT, max_steps: 2, batch_size: 4}]
GEN: {max_new_tokens: 4}
EVALREWARD: {reward: './my.py:score'}
"""
AGAIN = """\
tag: again
pipelines: [GEN]
model: [REPO]
dataset: [./pairs.jsonl]
tasks: [{pipeline: BASE}]
GEN: {max_new_tokens: 4}
"""
REWARD = "def score(prompts, responses):\n    return [float(len(each)) for each in responses]\n"
RUN = "SFT_tiny_pairs.jsonl_max_steps2_batch_size4_s0"


def project(folder: Path, tasks: str) -> Path:
    """A newcomer's own 50 pairs."""
    write_project(folder, tasks)
    rows = [
        {"prompt": f"Name {at} red fruits", "chosen": f"apple and cherry {at}", "rejected": "no"} for at in range(50)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "my.py").write_text(REWARD)
    return folder


def responses(folder: Path) -> list[Any]:
    import pyarrow.parquet as pq

    (step,) = (folder / ".cdpo" / "steps" / "GEN").iterdir()
    return pq.read_table(step / "out" / "responses.parquet").to_pylist()


def pushed(folder: Path) -> list[dict[str, str]]:
    return [
        each
        for path in (folder / ".cdpo/steps/PUSH").glob("*/out/pushed.json")
        for each in json.loads(path.read_text())
    ]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as server:
        yield server


@pytest.mark.slow
@pytest.mark.fault(28)
@pytest.mark.fault(29)
def test_from_own_pairs_to_a_model_in_a_folder_and_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    folder = project(tmp_path / "first", TASKS)
    run_cdpo("execute", cwd=folder)
    model, evaluation = pushed(folder)
    assert (model["repo"], model["branch"]) == (f"local/{RUN}", "mine")
    card = (Path(model["url"]) / "README.md").read_text()
    assert (Path(model["url"]) / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "](curves.png)" in card
    assert f"cdpo reproduce local/{RUN}@mine --to again" in card
    for wanted in ("reward/mean", "pairs.jsonl, sha256", "max_steps: 2", "my.py:score"):
        assert wanted in card
    assert str(tmp_path) not in card
    from datasets import load_dataset

    rows = load_dataset(evaluation["url"], "mine", split="eval", cache_dir=str(tmp_path / "datasets"))
    assert len(rows) == len(responses(folder)) == 5
    assert set(rows.column_names) >= {"prompt", "response", "reward_generated", "win_chosen"}
    # the same from the folder
    other = project(tmp_path / "second", AGAIN.replace("REPO", f"local/{RUN}@mine"))
    write_project(
        other, AGAIN.replace("REPO", f"local/{RUN}@mine"), **{"services/huggingface": f"root: {folder}/.cdpo/hub\n"}
    )
    run_cdpo("execute", cwd=other)
    texts = [row["response"] for row in responses(folder)]
    assert [row["response"] for row in responses(other)] == texts
    # one line more, and it goes to the Hub; nothing but PUSH is done again
    env = hub.environment(tmp_path / "cache", None)
    secret = folder / "configs" / "services" / "huggingface.yaml"
    secret.parent.mkdir()
    secret.write_text(f"{{kind: huggingface, token: {READER}, organization: lab}}\n")
    made = sorted(str(path) for path in (folder / ".cdpo/steps").glob("*/*"))
    refused = run_cdpo("execute", cwd=folder, env=env, check=1).stdout
    assert "the token may not do that" in refused
    assert sorted(str(path) for path in (folder / ".cdpo/steps").glob("*/*")) == made
    secret.write_text(f"{{kind: huggingface, token: {WRITER}, organization: lab}}\n")
    done = run_cdpo("execute", "--display", "json", cwd=folder, env=env)
    begun = [event for event in map(json.loads, done.stdout.splitlines()) if event["event"] == "step_started"]
    assert [event["pipeline"] for event in begun] == ["PUSH"]
    names = {"README.md", "mine/README.md", "mine/cdpo.json", "mine/eval.parquet"}
    there = set(tree(hub, "dataset", f"lab/{RUN}", "main"))
    assert {name for name in there if not name.startswith("mine/viewer/")} == names
    assert {"mine/viewer/run.json"} < there - names
    third = project(tmp_path / "third", AGAIN.replace("REPO", f"lab/{RUN}@mine"))
    run_cdpo("execute", cwd=third, env=hub.environment(tmp_path / "another cache", WRITER))
    assert [row["response"] for row in responses(third)] == texts
    # what was published tells how to make it again, and what only its maker has
    again = tmp_path / "again"
    words = ("reproduce", f"lab/{RUN}@mine", "--to", again)
    env_read = hub.environment(tmp_path / "another cache", WRITER)
    said = run_cdpo(*words, cwd=tmp_path, env=env_read, check=1).stdout
    assert "cannot be had: ./pairs.jsonl, the maker's own data, sha256 " in said
    assert "cannot be had: ./my.py:score, the maker's own function, sha256 " in said
    for name in ("pairs.jsonl", "my.py"):
        (again / name).write_bytes((folder / name).read_bytes())
    said = run_cdpo(*words, cwd=tmp_path, env=env_read).stdout
    assert said.count("same key") == 5
    assert "OTHER KEY" not in said
    run_cdpo("execute", cwd=again)
    figures = run_cdpo(*words, cwd=tmp_path, env=env_read).stdout
    assert re.search(r"reward/mean +\d", figures)
    assert "4 of 4 figures are the same" in figures
    (again / "my.py").write_text(REWARD.replace("len(each)", "2 * len(each)"))
    assert "my.py:score" in run_cdpo(*words, cwd=tmp_path, env=env_read, check=1).stdout
    assert "OTHER KEY  EVALREWARD" in run_cdpo(*words, cwd=tmp_path, env=env_read, check=1).stdout
    # what is taken back is what was published under the tag, there and in the folder
    shown = run_cdpo("clear", "-t", "mine", "-y", cwd=folder, env=env).stdout
    assert shown.count("the whole ") == 4
    assert shown.count("withdrawn: ") == 4
    assert "4 on a hub, and " in shown
    with pytest.raises(Refused):
        tree(hub, "model", f"lab/{RUN}", "mine")
    assert not (Path(model["url"]).parents[2] / RUN).exists()
    # the token went nowhere but into the header of requests
    for path in (path for path in folder.rglob("*") if path.is_file() and path != secret):
        assert WRITER.encode() not in path.read_bytes(), path
    for request in hub.requests:
        others = [header for header in request.headers if header[0].lower() != "authorization"]
        assert WRITER.encode() not in replace(request, headers=others).everything()


@pytest.mark.slow
def test_what_was_taken_away_is_published_again(tmp_path: Path) -> None:
    folder = project(tmp_path, TASKS.replace(", PUSH", "").replace(", EVALREWARD", "").rpartition("EVALREWARD")[0])
    run_cdpo("execute", cwd=folder)
    there = folder / ".cdpo" / "hub" / "models" / "local" / RUN

    def weights() -> bool:
        return any(there.rglob("*.safetensors"))

    run_cdpo("push", cwd=folder)
    assert weights()
    # another's doing
    shutil.rmtree(there)
    run_cdpo("push", cwd=folder)
    assert weights()
    assert "0 to run" in run_cdpo("push", cwd=folder).stdout
    # our own
    run_cdpo("clear", "-t", "mine", "-y", cwd=folder)
    assert not weights()
    assert not list((folder / ".cdpo" / "steps" / "PUSH").glob("[!.]*"))
    run_cdpo("execute", cwd=folder)
    run_cdpo("push", cwd=folder)
    assert weights()
    # all of it, with the card
    run_cdpo("pull", f"local/{RUN}@mine", "--to", tmp_path / "pulled", cwd=folder)
    assert {"README.md", "curves.png", "cdpo.json", "model.safetensors"} <= {
        path.name for path in (tmp_path / "pulled").iterdir()
    }
    assert "there is none in" in run_cdpo("pull", "local/nobody@mine", cwd=folder, check=2).stderr


@pytest.mark.slow
def test_an_adapter_is_published_as_one_where_its_model_is_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    from cdpo.models import build

    build({"kind": "tiny", "seed": 0}, tmp_path / "tiny")
    commit = fill(hub, "models", "lab/small", folder_files(tmp_path / "tiny"))
    env = hub.environment(tmp_path / "cache", WRITER)
    tasks = TASKS.replace("[tiny]", "[lab/small]").replace("max_steps: 2", "lora: true, max_steps: 2")
    folder = project(tmp_path / "first", tasks)
    run_cdpo("execute", cwd=folder, env=env)
    model, _ = pushed(folder)
    there = tree(hub, "model", model["repo"], "mine")
    assert "adapter_model.safetensors" in there
    assert "model.safetensors" not in there
    settings = json.loads(there["adapter_config.json"])
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("lab/small", commit)
    assert "base_model: lab/small" in there["README.md"].decode()
    # as peft reads it, and as cdpo does
    load = "import sys, peft; peft.AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], revision='mine')"
    subprocess.run([sys.executable, "-c", load, model["repo"]], env=env, check=True)
    other = project(tmp_path / "second", AGAIN.replace("REPO", f"{model['repo']}@mine"))
    run_cdpo("execute", cwd=other, env=env)
    assert [row["response"] for row in responses(other)] == [row["response"] for row in responses(folder)]
