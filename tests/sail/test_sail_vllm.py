"""SAIL's sampling through vLLM: what it takes from the policy, and where it is refused."""

import copy
import json
import os
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError

from cdpo import SAILConfig
from cdpo.data.tiny import build_tiny
from cdpo.errors import StepError
from cdpo.models import load_policy
from cdpo.pipelines.sail import DPPParams
from cdpo.sail.vllm_sampler import merged_weights, refuse_vllm
from tests.conftest import ROOT

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"


@pytest.fixture
def model(tmp_path):
    build_tiny({"kind": "tiny", "seed": 0, "hidden_size": 32, "num_hidden_layers": 2}, tmp_path)
    return load_policy(tmp_path, device=torch.device("cpu"))


def test_an_adapter_is_added_to_weights_that_stay_as_they_are(model):
    whole = copy.deepcopy(model)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    found = {name: value.clone() for name, value in merged_weights(wrapped)}
    assert all(torch.equal(before[name], value) for name, value in wrapped.state_dict().items())
    theirs = dict(wrapped.merge_and_unload().named_parameters())
    assert found.keys() == theirs.keys() == dict(whole.named_parameters()).keys()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in theirs.items())
    changed = [name for name, value in whole.named_parameters() if not torch.equal(value, found[name])]
    assert len(changed) == 14


def test_whole_weights_are_given_as_they_are(model):
    assert all(value is dict(model.named_parameters())[name] for name, value in merged_weights(model))


@pytest.mark.parametrize("kind, world, said", [("cpu", 1, "runs on a CPU"), ("cuda", 2, "runs on 2 processes")])
def test_it_is_refused_where_weights_cannot_follow(kind, world, said):
    with pytest.raises(StepError, match=said):
        refuse_vllm(SimpleNamespace(device=torch.device(kind), world_size=world))
    refuse_vllm(SimpleNamespace(device=torch.device("cuda"), world_size=1))


def test_what_the_parameters_refuse():
    given = {"beta": 0.1, "p": 0.3, "pi": 0.2, "learning_rate": 1e-4}
    assert DPPParams.model_validate(given | {"backend": "vllm"}).backend == "vllm"
    with pytest.raises(ValidationError, match="4 bits"):
        DPPParams.model_validate(given | {"backend": "vllm", "quantization": "nf4", "lora": True})
    with pytest.raises(ValueError, match="backend is 'transformers' or 'vllm'"):
        SAILConfig("out", backend="trl", bf16=False, use_cpu=True)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".venv-vllm" / "ready").exists(), reason="no .venv-vllm: `make vllm-env`")
def test_vllm_follows_the_policy(tmp_path):
    """In the environment that has vLLM; see vllm_checks.py."""
    script = Path(__file__).with_name("vllm_checks.py")
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    done = subprocess.run(
        [PYTHON, script, tmp_path, ROOT, sysconfig.get_paths()["purelib"]],
        env={**os.environ, **settings, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    deaf, training = found.pop("deaf"), found.pop("training")
    assert found.pop("apart") < 1e-5
    equal = ("as loaded", "other weights", "back again", "an adapter", "the same seeds")
    assert found == {**dict.fromkeys(equal, 20), "untouched": True, "names": True}
    assert training["equal to the trained"] == 20
    assert len(training["losses"]) == 3
    # where the weights do not follow, nothing is sampled
    assert "other weights than those that are trained" in deaf
