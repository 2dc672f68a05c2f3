"""The model that a server reads: built, or merged with its adapter, the same as what a step would run itself."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from serving import Serving
from transformers import AutoModelForCausalLM

from cdpo.data.tiny import build_tiny
from cdpo.engine.services import prepare
from cdpo.files import read_json
from cdpo.models import load_policy, load_tokenizer, read_weights
from cdpo.weights import stored_dtype

TINY = {"kind": "tiny", "seed": 0, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
CPU = torch.device("cpu")


@pytest.fixture
def trained(tmp_path):
    """A tiny model, and an adapter on it that changes its answers."""
    model, adapter = tmp_path / "base", tmp_path / "adapter"
    build_tiny(TINY, model)
    torch.manual_seed(0)
    settings = LoraConfig(
        r=4, lora_alpha=8.0, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(load_policy(model, device=CPU), settings).save_pretrained(adapter)
    return model, adapter


def logits(model):
    with torch.no_grad():
        return model(torch.arange(7, 40).reshape(3, 11)).logits


def read(folder, kind=torch.float32):
    return read_weights(AutoModelForCausalLM, folder, kind, "sdpa", device=CPU).eval()


@pytest.mark.parametrize("built", [False, True])
def test_a_merged_model_answers_as_model_and_adapter_do(tmp_path, trained, built):
    model, adapter = trained
    keep = {"server": "transformers", "adapter": str(adapter)}
    keep |= {"build": TINY, "model": None} if built else {"build": None, "model": str(model)}
    room = tmp_path / "a room"
    room.mkdir()
    (room / "service.json").write_text(json.dumps(keep))
    assert prepare.main(room) == 0
    merged = logits(read(room / "model"))
    assert torch.allclose(merged, logits(load_policy(model, adapter, device=CPU)), atol=1e-5)
    assert not torch.allclose(merged, logits(load_policy(model, device=CPU)), atol=1e-2)
    text = "a b c"
    assert load_tokenizer(room / "model")(text) == load_tokenizer(model, adapter)(text)
    assert not (room / "model" / prepare.SAMPLING).exists()
    prepare.clear(room)
    assert [path.name for path in room.iterdir()] == ["service.json"]


def test_a_merged_model_keeps_its_type(tmp_path, trained):
    model, adapter = trained
    half = tmp_path / "half"
    read(model, torch.float16).save_pretrained(half)
    load_tokenizer(model).save_pretrained(half)
    assert stored_dtype(half) == "fp16"
    prepare.merge(half, adapter, tmp_path / "merged")
    assert stored_dtype(tmp_path / "merged") == "fp16"


@pytest.mark.slow
def test_a_service_builds_its_model_and_says_why_it_cannot(tmp_path):
    serving = Serving(tmp_path)
    try:
        plan = serving.served_plan("a", "b")
        for step, spec in zip(plan.steps.values(), (TINY, {"kind": "huge"}), strict=True):
            step.inputs["model"] = {"built": spec}
        serving.write(plan)
        process = serving.ask()
        code, events = serving.finish(process)
        assert code == 1
        one, two = plan.steps
        failed = {event["name"]: event["reason"] for event in events if event["event"] == "step_failed"}
        assert "cdpo can build a model of kind 'tiny', not 'huge'" in failed["b"]
        assert read_json(serving.store.find(one) / "manifest.json")["summary"]["rows"] == 5
        assert serving.no_service()
        assert not list(serving.store.root.glob("services/*/model*"))
        assert two not in serving.store.finished()
    finally:
        serving.close()
