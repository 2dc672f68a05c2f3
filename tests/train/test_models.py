"""Loading models: types, refusals that say what to do, and building."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cdpo.errors import StepError
from cdpo.models import build, check_attention, load_policy, load_tokenizer, torch_device
from cdpo.step import Device
from cdpo.weights import stored_dtype

CPU = torch.device("cpu")


def test_auto_is_what_the_checkpoint_is_stored_in(world, tmp_path) -> None:
    assert stored_dtype(world.base) == "fp32"
    AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert stored_dtype(tmp_path) == "bf16"
    assert load_policy(tmp_path, device=CPU).dtype == torch.bfloat16
    assert load_policy(tmp_path, dtype="fp32", device=CPU).dtype == torch.float32
    assert not load_policy(tmp_path, device=CPU).training
    # a configuration without weights beside it still says what they are
    (tmp_path / "model.safetensors").unlink()
    assert stored_dtype(tmp_path) == "bf16"


def test_tokenizer_gets_a_pad_token_and_the_template_that_is_named(world, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, template="inst")
    assert loaded.pad_token == loaded.eos_token
    assert "[INST]" in loaded.chat_template
    assert load_tokenizer(world.base).chat_template == tokenizer.chat_template
    with pytest.raises(StepError, match="holds no tokenizer"):
        load_tokenizer(world.data)


def test_folders_that_are_no_model_are_refused(world, tmp_path) -> None:
    with pytest.raises(StepError, match=r"no config\.json"):
        load_policy(tmp_path, dtype="fp32", device=CPU)
    shutil.copy(world.base / "config.json", tmp_path / "config.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(StepError, match=r"pickles only.*save_pretrained"):
        load_policy(tmp_path, device=CPU)


def test_what_this_machine_lacks_is_named(monkeypatch) -> None:
    check_attention("sdpa", CPU)
    with pytest.raises(StepError, match="flash_attention_2 needs a CUDA device"):
        check_attention("flash_attention_2", CPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StepError, match="torch sees none"):
        torch_device(Device(kind="cuda"))


def test_build_dispatches_by_kind(world, tmp_path) -> None:
    build({"kind": "tiny", "seed": 0, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 16
    with pytest.raises(StepError, match="'huge'"):
        build({"kind": "huge"}, tmp_path)
