"""Models that bring Python of their own: it does not run unasked, and what is made of a trusted one can be read."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cdpo import trust
from cdpo.errors import StepError
from cdpo.models import load_policy, load_reward, load_tokenizer, read_config, refuse_own_code
from tests.conftest import ROOT, run_cdpo, write_project
from tests.trust.custom_models import Custom

CPU = torch.device("cpu")
DATASETS = "small: {rule: playground, gold: playground, playground: {train: 32, tune: 8, eval: 8}}\n"
TASKS = """\
tag: own
pipelines: [SFT, RM, DPO, GEN, EVALREWARD, PUSH]
model: [own]
dataset: [small]
tasks: [{pipeline: DPO, lora: true, beta: 0.1}]
DPO: {learning_rate: 1e-3, max_steps: 2, batch_size: 8}
SFT: {learning_rate: 2e-3, max_steps: 2, batch_size: 8}
RM: {learning_rate: 1e-3, max_steps: 2, batch_size: 8}
GEN: {max_new_tokens: 8}
"""
BASE = """\
tag: base
pipelines: [GEN]
model: [own]
dataset: [small]
tasks: [{pipeline: BASE}]
GEN: {max_new_tokens: 8}
"""
PLAIN = "own: {path: ./model}\n"
TRUSTED = "own: {path: ./model, trust_remote_code: true}\n"


@pytest.fixture
def custom(tmp_path: Path) -> Custom:
    return Custom(tmp_path / "model", tmp_path / "marker")


def project(custom: Custom, models: str, tasks: str = TASKS) -> Path:
    return write_project(custom.folder.parent, tasks, datasets=DATASETS, models=models)


@pytest.mark.parametrize("read", [read_config, load_tokenizer, load_policy, load_reward])
def test_the_code_of_a_model_is_not_run_unasked(custom: Custom, read) -> None:  # type: ignore[no-untyped-def]
    path = custom.folder / "tokenizer_config.json"
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["told.T", None]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    with pytest.raises(StepError) as caught:
        read(custom.folder, **({"device": CPU} if read in (load_policy, load_reward) else {}))
    said = str(caught.value)
    assert f"{custom.folder} brings code of its own (configuration_own.py, modeling_own.py, told.py)" in said
    assert "write `trust_remote_code: true` in the entry of this model" in said
    assert custom.ran == []


def test_a_model_that_transformers_knows_is_read_without_the_code_that_it_brings(tmp_path: Path) -> None:
    custom = Custom(tmp_path / "model", tmp_path / "marker", model_type="llama")
    model = load_policy(custom.folder, device=CPU)
    assert type(model).__module__.startswith("transformers.")
    refuse_own_code(custom.folder, AutoModelForCausalLM, "it")
    assert custom.ran == []


def test_prep_refuses_a_model_that_needs_code_and_is_not_trusted(custom: Custom) -> None:
    folder = project(custom, PLAIN)
    done = run_cdpo("prep", cwd=folder, check=2)
    assert "model brings code of its own (configuration_own.py, modeling_own.py, told.py)" in done.stderr
    assert not (folder / ".cdpo" / "steps").exists()
    assert custom.ran == []


def test_prep_refuses_a_model_whose_class_alone_is_its_own(tmp_path: Path) -> None:
    """Its configuration and its tokenizer are transformers'; that they can be read tells nothing."""
    custom = Custom(tmp_path / "model", tmp_path / "marker", model_type="t5")
    assert type(read_config(custom.folder)).__name__ == "T5Config"
    with pytest.raises(StepError, match="it brings code of its own"):
        refuse_own_code(custom.folder, AutoModelForCausalLM, "it")
    assert custom.ran == []


@pytest.mark.slow
def test_no_command_runs_the_code_of_a_model_that_is_not_trusted(custom: Custom) -> None:
    folder = project(custom, PLAIN)
    for words in (["execute"], ["execute", "--smoke"], ["sft", "-m", "own", "-d", "small", "-t", "x"]):
        done = run_cdpo(*words, cwd=folder, check=2)
        assert "model brings code of its own (configuration_own.py, modeling_own.py, told.py)" in done.stderr
    for words in (["plan"], ["doctor"], ["why", "SFT/"], ["results"]):
        run_cdpo(*words, cwd=folder, check=None)
    assert custom.ran == []
    # one that transformers knows is read without
    custom.configure(model_type="llama")
    run_cdpo("prep", cwd=folder)
    assert custom.ran == []


@pytest.mark.slow
def test_a_step_runs_code_only_of_the_roles_that_it_names(custom: Custom, tmp_path: Path) -> None:
    folder = project(custom, TRUSTED, BASE)
    run_cdpo("execute", "--display", "plain", cwd=folder)
    (told,) = (folder / ".cdpo" / "steps" / "GEN").glob("*/step.json")
    step = json.loads(told.read_text())
    assert step["trusted"] == ["model"]
    for name, roles in (("with", ["model"]), ("without", [])):
        work = tmp_path / name
        work.mkdir()
        (work / "step.json").write_text(json.dumps({**step, "trusted": roles}))
        ran = len(custom.ran)
        command = [sys.executable, str(ROOT / "pipelines" / "gen.py"), str(work)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is bool(roles), done.stderr
        assert ("brings code of its own" in done.stderr) is not bool(roles)
        assert (len(custom.ran) > ran) is bool(roles)


READ_AND_SAVE = """\
import os, sys
from pathlib import Path
from cdpo import trust
folder, out = map(Path, sys.argv[1:])
trust.allow([folder])
copies = os.environ[trust.MODULES]
import torch
from cdpo.models import load_policy, load_reward, load_tokenizer, read_config
load_tokenizer(folder).save_pretrained(out)
model = load_policy(folder, device=torch.device("cpu"))
model.save_pretrained(out)
assert type(model).__name__ == "OwnForCausalLM", type(model)
assert read_config(folder).model_type == "own_llama"
print(copies)
"""


@pytest.mark.slow
def test_what_is_saved_of_a_trusted_model_can_be_read_like_it(custom: Custom, tmp_path: Path) -> None:
    places = [custom.folder, tmp_path / "out", tmp_path / "again"]
    copies = []
    for read, written in itertools.pairwise(places):
        command = [sys.executable, "-c", READ_AND_SAVE, str(read), str(written)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        copies.append(done.stdout.splitlines()[-1])
        assert {path.name for path in written.glob("*.py")} == {path.name for path in custom.folder.glob("*.py")}
        assert trust.not_pinned(written) is None
    # every process has copies of its own, which go with it
    assert len(set(copies)) == 2
    assert not any(os.path.exists(each) for each in copies)
    assert {copy for _, _, copy in custom.ran} == set(copies)


def test_a_trusted_model_of_pickles_alone_is_refused_before_its_code_runs(custom: Custom) -> None:
    (custom.folder / "model.safetensors").rename(custom.folder / "pytorch_model.bin")
    reads = (
        "import sys, torch\nfrom pathlib import Path\nfrom cdpo import trust\nfolder = Path(sys.argv[1])\n"
        "trust.allow([folder])\nfrom cdpo.models import load_policy\n"
        "load_policy(folder, dtype='fp32', device=torch.device('cpu'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", reads, str(custom.folder)], capture_output=True, text=True, check=False
    )
    assert "holds its weights as pickles only" in done.stderr
    assert custom.ran == []


def test_permission_is_for_a_folder_and_for_no_other(custom: Custom, tmp_path: Path) -> None:
    assert not trust.allowed(custom.folder)
    (tmp_path / "link").symlink_to(custom.folder)
    script = (
        "import sys\nfrom pathlib import Path\nfrom cdpo import trust\n"
        "model, link = map(Path, sys.argv[1:])\ntrust.allow([link])\n"
        "print(*map(trust.allowed, (model, str(link), model.parent, model / 'in')))"
    )
    command = [sys.executable, "-c", script, str(custom.folder), str(tmp_path / "link")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False", "False"]


@pytest.mark.parametrize("settings", ["{", "[]", '{"auto_map": null}', '{"auto_map": {"AutoConfig": 3}}'])
def test_settings_that_name_no_code_name_none(tmp_path: Path, settings: str) -> None:
    (tmp_path / "config.json").write_text(settings)
    assert trust.own_code(tmp_path) == []


@pytest.mark.slow
def test_a_trusted_model_goes_through_all_steps_and_is_published_with_its_code(custom: Custom, tmp_path: Path) -> None:
    folder = project(custom, TRUSTED)
    run_cdpo("execute", "--display", "plain", cwd=folder)
    # no two processes share copies, and no step keeps them
    copies: dict[str, set[str]] = {}
    for _, process, copy in custom.ran:
        copies.setdefault(copy, set()).add(process)
    assert len(copies) > 6
    assert all(len(processes) == 1 for processes in copies.values())
    assert not any(os.path.exists(copy) for copy in copies)
    (hub,) = (path.parent for path in (folder / ".cdpo" / "hub").rglob("modeling_own.py"))
    assert {path.name for path in hub.glob("*.py")} == {path.name for path in custom.folder.glob("*.py")}
    card = (hub / "README.md").read_text()
    assert "`configuration_own.py`, `modeling_own.py`, `told.py`" in card
    assert "`trust_remote_code=True`" in card
    recipe = json.loads((hub / "cdpo.json").read_text())
    assert {step["inputs"]["model"].get("trusted") for step in recipe["steps"] if step["pipeline"] == "SFT"} == {True}
    # `cdpo push` merges it again, where the plan says that its code may run
    (only,) = {path.parent.parent for path in (folder / ".cdpo" / "steps" / "PUSH").glob("*/out")}
    shutil.rmtree(only)
    run_cdpo("push", cwd=folder)
    pulled = run_cdpo("pull", f"local/{recipe['run']}@own", "--to", tmp_path / "pulled", cwd=folder)
    assert (tmp_path / "pulled" / "modeling_own.py").exists(), pulled.stdout
    # whoever makes it again decides for himself
    done = run_cdpo("reproduce", f"local/{recipe['run']}@own", "--to", tmp_path / "again", cwd=folder, check=1)
    assert "not trusted: model brings code of its own" in done.stdout
    written = tmp_path / "again" / "configs" / "tasks.yaml"
    assert "trust_remote_code" not in written.read_text()
    written.write_text(written.read_text().replace("path: ./model", "path: ./model\n    trust_remote_code: true"))
    shutil.copytree(custom.folder, tmp_path / "again" / "model")
    done = run_cdpo("reproduce", f"local/{recipe['run']}@own", "--to", tmp_path / "again", cwd=folder, check=None)
    assert "not trusted" not in done.stdout
    assert "OTHER KEY" not in done.stdout
    assert done.stdout.count("same key") == len(recipe["steps"])
    # and what was published is a model like any other
    name = f"published: {{id: local/{recipe['run']}@own"
    other = write_project(tmp_path / "other", BASE.replace("own]", "published]"), datasets=DATASETS)
    root = {"services/huggingface": f"root: {folder}/.cdpo/hub\n"}
    write_project(other, BASE.replace("own]", "published]"), models=name + "}\n", **root)
    ran = len(custom.ran)
    done = run_cdpo("prep", cwd=other, check=2)
    assert f"local/{recipe['run']} brings code of its own" in done.stderr
    (pin,) = (pin for pin in json.loads((other / "configs/hub.lock.json").read_text()).values() if pin != 1)
    assert not any(path.endswith(".py") for path in pin["files"])
    assert len(custom.ran) == ran
    write_project(other, BASE.replace("own]", "published]"), models=name + ", trust_remote_code: true}\n")
    run_cdpo("execute", cwd=other)
    assert len(custom.ran) > ran
