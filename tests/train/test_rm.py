"""RM: Bradley-Terry by hand, the reward sits on the end token, and the saved model is one that anybody can load."""

import math

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cdpo.data.prepared import read_split
from cdpo.data.tokens import encode, end_token_id
from cdpo.errors import StepError
from cdpo.models import load_reward
from cdpo.train.trainable import pad_apart_from_end

CPU = torch.device("cpu")
PARAMS = {"learning_rate": 1e-2, "batch_size": 16, "max_steps": 3}


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}], ids=["full", "lora"])
def test_scores_are_bradley_terry_on_the_saved_model(world, sft, lora) -> None:
    work, summary = world.run("RM", {**PARAMS, **({"lora": lora} if lora else {})}, model=sft)
    out = work / "out"
    if lora:
        assert not (out / "config.json").exists()
        model = load_reward(sft, out, device=CPU)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(out)
        assert load_reward(out, device=CPU).config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.pad_token_id == tokenizer.pad_token_id != end_token_id(tokenizer)
    scores = [row for row in pq.read_table(out / "scores.parquet").to_pylist() if row["split"] == "eval"]
    for row, score in zip(read_split(world.data, "eval"), scores, strict=True):
        rewards = []
        for side in ("chosen", "rejected"):
            ids = encode(tokenizer, row["prompt"], row[side])
            with torch.no_grad():
                rewards.append(float(model(input_ids=torch.tensor([ids.prompt_ids + ids.response_ids])).logits[0, 0]))
        margin = rewards[0] - rewards[1]
        assert score["rm/chosen"] == pytest.approx(rewards[0], abs=1e-4)
        assert score["rm/margin"] == pytest.approx(margin, abs=1e-4)
        assert score["rm/loss"] == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-4)
        assert score["rm/accuracy"] == float(margin > 0)
    assert summary["after"]["eval"]["rm/loss"] != summary["before"]["eval"]["rm/loss"]


def test_the_end_token_gets_the_reward_where_pad_is_eos(world, sft, tmp_path) -> None:
    """A base model whose tokenizer pads with EOS, as most do."""
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(sft)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(sft)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    work, _ = world.run("RM", {**PARAMS, "max_steps": 1}, model=tmp_path)
    reward = load_reward(work / "out", device=CPU)
    tokenizer = AutoTokenizer.from_pretrained(work / "out")
    prompt, response = encode(tokenizer, *(read_split(world.data, "eval")[0][name] for name in ("prompt", "chosen")))
    assert response[-1] == end_token_id(tokenizer) != tokenizer.pad_token_id
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        at_end = reward.score(reward.model(input_ids=ids).last_hidden_state)[0, -1, 0]
        assert float(reward(input_ids=ids).logits[0, 0]) == pytest.approx(float(at_end))
        padded = torch.cat([ids, torch.full((1, 3), tokenizer.pad_token_id)], dim=1)
        mask = (torch.arange(padded.size(1)) < ids.size(1)).long()[None]
        assert float(reward(input_ids=padded, attention_mask=mask).logits[0, 0]) == pytest.approx(
            float(at_end), abs=1e-5
        )


def test_pad_that_is_apart_already_stays(world) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.base)
    pad = tokenizer.pad_token
    assert pad_apart_from_end(tokenizer).pad_token == pad


def test_a_language_model_is_no_reward_model(world, sft) -> None:
    with pytest.raises(StepError, match=r"not a reward model.*score\.weight"):
        load_reward(sft, device=CPU)


def test_center_rewards_coefficient_changes_the_loss(world, sft) -> None:
    plain, centred = (
        world.run("RM", {**PARAMS, **extra}, model=sft)[1]["train_loss"]
        for extra in ({}, {"center_rewards_coefficient": 0.5})
    )
    assert centred > plain
