"""Adapters: what the reference is, what is saved, and that it gives the same logits when it is read again."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from cdpo.errors import StepError
from cdpo.models import load_policy

CPU = torch.device("cpu")
LORA = {"r": 4, "lora_alpha": 8.0}
PARAMS = {"learning_rate": 1e-2, "beta": 0.1, "batch_size": 16, "max_steps": 2}
IDS = torch.tensor([[2, 9, 10, 11, 12, 13]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_an_adapter_is_trained_on_and_its_copy_is_the_reference(world, sft_adapter) -> None:
    work, summary = world.run("DPO", {**PARAMS, "lora": LORA}, model_adapter=sft_adapter)
    # the policy was the reference: nothing to tell them apart before, and the log-probabilities are SFT's
    before = summary["before"]["eval"]
    assert before["rewards/margins"] == 0.0
    assert before["loss"] == pytest.approx(math.log(2), rel=1e-6)
    started = world.run("DPO", {**PARAMS, "max_steps": 1, "learning_rate": 1e-9}, model_adapter=sft_adapter)[1]
    assert before["logps/chosen"] == pytest.approx(started["before"]["eval"]["logps/chosen"], rel=1e-4)
    assert summary["after"]["eval"]["rewards/margins"] != 0.0
    # one adapter on the base
    out = work / "out"
    assert (out / "adapter_config.json").exists()
    assert not (out / "ref").exists()
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
    trained, given = load_policy(world.base, out, device=CPU), load_policy(world.base, sft_adapter, device=CPU)
    assert not torch.allclose(logits(trained), logits(given), atol=1e-4)


def test_a_new_adapter_has_the_model_without_it_as_reference(world, sft) -> None:
    work, summary = world.run("DPO", {**PARAMS, "lora": LORA}, model=sft)
    assert summary["before"]["eval"]["rewards/chosen"] == 0.0
    assert (work / "out/adapter_config.json").exists()
    assert not (work / "out/model.safetensors").exists()
    full = world.run("DPO", {**PARAMS, "max_steps": 1}, model=sft)[1]
    assert summary["before"]["eval"]["logps/chosen"] == pytest.approx(full["before"]["eval"]["logps/chosen"], rel=1e-5)


def test_without_lora_an_adapter_is_merged_and_all_weights_are_trained(world, sft_adapter) -> None:
    params = {**PARAMS, "max_steps": 1, "learning_rate": 1e-12}
    work, _ = world.run("DPO", params, model_adapter=sft_adapter)
    assert not (work / "out/adapter_config.json").exists()
    merged = AutoModelForCausalLM.from_pretrained(work / "out")
    torch.testing.assert_close(
        logits(merged), logits(load_policy(world.base, sft_adapter, device=CPU)), rtol=1e-4, atol=1e-5
    )


def test_a_saved_adapter_scores_as_it_did_when_it_was_trained(world, sft_adapter) -> None:
    """The scores of the last step are computed in training's process; the same adapter read anew gives them again."""
    first, _ = world.run("DPO", {**PARAMS, "lora": LORA}, model_adapter=sft_adapter)
    again = world.run(
        "DPO", {**PARAMS, "lora": LORA, "max_steps": 1, "learning_rate": 1e-12}, model_adapter=first / "out"
    )[1]
    import pyarrow.parquet as pq

    rows = [row for row in pq.read_table(first / "out/scores.parquet").to_pylist() if row["split"] == "eval"]
    mean = sum(row["logps/chosen"] for row in rows) / len(rows)
    assert again["before"]["eval"]["logps/chosen"] == pytest.approx(mean, rel=1e-5)


def test_another_shape_of_adapter_is_refused(world, sft_adapter) -> None:
    with pytest.raises(StepError, match="r: 4 there, 8 here"):
        world.run("DPO", {**PARAMS, "lora": {"r": 8, "lora_alpha": 8.0}}, model_adapter=sft_adapter)
    with pytest.raises(StepError, match="target_modules"):
        world.run("DPO", {**PARAMS, "lora": {**LORA, "target_modules": ["q_proj"]}}, model_adapter=sft_adapter)


def test_layers_that_are_not_there_are_refused(world) -> None:
    with pytest.raises(StepError, match="Wqkv"):
        world.run("SFT", {"learning_rate": 1e-3, "max_steps": 1, "lora": {**LORA, "target_modules": ["Wqkv"]}})


def test_quantization_says_what_is_missing(world) -> None:
    with pytest.raises(StepError, match="a CUDA device and the package bitsandbytes"):
        world.run("SFT", {"learning_rate": 1e-3, "max_steps": 1, "lora": LORA, "quantization": "nf4"})
