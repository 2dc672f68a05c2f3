"""Adapters and gradient checkpointing: the same method, whichever weights are trained and however memory is saved."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sailing import ALL, Room, log_probs, losses

from cdpo.config.params import SamplingParams
from cdpo.generate.backend import Item
from cdpo.generate.transformers_backend import generate
from cdpo.sail.routes import SAMPLED
from cdpo.sail.trainer import SAILTrainer

LORA = LoraConfig(r=4, lora_alpha=8.0, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def adapted(room: Room) -> Any:
    """The policy with an adapter that has been trained already."""
    torch.manual_seed(4)
    return get_peft_model(room.model(), LORA)


def kinds(room: Room, kind: str, **config: Any) -> SAILTrainer:
    if kind == "full":
        return room.trainer(**config)
    if kind == "a new adapter":
        torch.manual_seed(4)
        return room.trainer(given={"peft_config": LoraConfig(r=4, task_type="CAUSAL_LM")}, **config)
    return room.trainer(model=adapted(room), **config)


KINDS = ["full", "a new adapter", "an adapter that is trained on"]


@pytest.mark.parametrize(("kind", "reentrant"), [*((kind, False) for kind in KINDS), ("full", True)])
def test_gradient_checkpointing_gives_the_same_losses(room: Room, kind: str, reentrant: bool) -> None:
    options = {**ALL, "staleness": 1, "num_train_epochs": 2, "baseline": "moving"}
    found = []
    for checkpointing in (False, True):
        given = {"gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        trainer = kinds(room, kind, **options, **given)
        layers = [layer for layer in trainer.model.modules() if hasattr(layer, "gradient_checkpointing")]
        trainer.train()
        assert any(layer.gradient_checkpointing for layer in layers) == checkpointing
        found.append(losses(trainer))
    assert len(found[0]) == 8
    assert found[1] == pytest.approx(found[0], abs=1e-6)
    assert len(set(found[0])) == 8


def away_from_the_start(trainer: SAILTrainer) -> SAILTrainer:
    """As if it had been trained for a while."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in (each for each in trainer.model.parameters() if each.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    trainer.state.max_steps = 10
    return trainer


def merged(room: Room, trainer: SAILTrainer) -> Any:
    """The policy of a trainer as a plain model of its own, adapter and all."""
    model = room.model()
    if not isinstance(trainer.model, PeftModel):
        model.load_state_dict(trainer.model.state_dict())
        return model
    made = get_peft_model(model, trainer.model.peft_config["default"])
    made.load_state_dict(trainer.model.state_dict(), strict=False)
    return made.merge_and_unload()


@pytest.mark.parametrize("kind", KINDS)
def test_responses_are_those_of_a_plain_model_of_the_same_weights(room: Room, kind: str) -> None:
    trainer = away_from_the_start(kinds(room, kind, p=0.6, pi=0.3, temperature=0.8))
    prompts, seeds = [row["prompt_ids"] for row in room.rows()], list(range(29))

    def answers(model: Any) -> list[list[int]]:
        items = [Item(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        sampling = SamplingParams(temperature=0.8, max_new_tokens=6)
        found = dict(generate(model, items, sampling, end_ids=[3], pad_id=0, batch_size=29))
        return [found[at].token_ids for at in range(29)]

    responses = [response.token_ids for response in trainer.workshop.sample(prompts, seeds)]
    assert responses == answers(merged(room, trainer))
    assert responses != answers(room.model())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampled_response_has_the_log_probabilities_of_the_policy_with_its_adapter(room: Room, kind: str) -> None:
    """Under both heads, and not the reference's."""
    trainer = away_from_the_start(kinds(room, kind, p=0.6, pi=0.3, temperature=0.8))
    trainer.add_reference(list(trainer.batches.dataset))
    policy, away = merged(room, trainer), 0.0
    (batch, *_) = list(trainer.batches)
    values = batch.pop("values")
    sampled = torch.isin(values["route"].int(), torch.tensor(SAMPLED)).repeat(2)
    assert sampled.any()
    references = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
    with torch.no_grad():
        outputs = trainer.run_model(trainer.model, batch, sampled=sampled)
    for at in sampled.nonzero().flatten().tolist():
        attended, said = batch["attention_mask"][at].bool(), batch["completion_mask"][at].bool()
        prompt, response = (batch["input_ids"][at][each].tolist() for each in (attended & ~said, said))
        own = log_probs(policy, prompt, response)
        assert float(outputs.log_probs[at].sum()) == pytest.approx(own, abs=1e-4)
        assert float(outputs.sampling_logps[at]) == pytest.approx(log_probs(policy, prompt, response, 0.8), abs=1e-4)
        away = max(away, abs(own - float(references[at])))
    assert away > 0.1


def test_the_reference_of_an_adapter_that_is_trained_on_is_the_adapter_as_it_was(room: Room) -> None:
    model = adapted(room)
    before = copy.deepcopy(model)
    trainer = room.trainer(model=model, **ALL, num_train_epochs=2)
    trainer.train()
    base = room.model()
    rows = [dict(row) for row in room.rows("tune")]
    trainer.add_reference(rows)
    differs = [0.0, 0.0]
    for row in rows:
        prompt, said = row["prompt_ids"], row["chosen_ids"]
        assert row["ref_chosen_logps"] == pytest.approx(log_probs(before, prompt, said), abs=1e-4)
        for at, other in enumerate((base, trainer.model)):
            differs[at] = max(differs[at], abs(row["ref_chosen_logps"] - log_probs(other, prompt, said)))
    assert min(differs) > 1e-2, "neither the model without it nor what it has become"


def test_only_the_adapter_is_trained(room: Room) -> None:
    trainer = kinds(room, "an adapter that is trained on", **ALL)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name and ".default." in name for name in changed)


def test_sampling_leaves_the_mode_of_the_model_and_the_adapter_as_they_were(room: Room, monkeypatch) -> None:
    trainer = kinds(room, "an adapter that is trained on", p=0.6, pi=0.3, max_steps=2)
    modes = []
    weighted_loss = trainer.weighted_loss

    def watch(model: Any, *others: Any) -> Any:
        modes.append((model.training, trainer.model.active_adapters))
        return weighted_loss(model, *others)

    monkeypatch.setattr(trainer, "weighted_loss", watch)
    trainer.train()
    assert modes == [(True, ["default"])] * 2
