"""A training that is resumed from a checkpoint repeats the one that was not interrupted, bit for bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sailing import ALL, Room
from transformers import TrainerCallback

from cdpo.sail.trainer import SAILTrainer

#: steps of an epoch: 29 rows by 8
EPOCH = 4
#: in the middle of the second epoch
INTERRUPTED = EPOCH + 2


LORA = {"r": 4, "task_type": "CAUSAL_LM", "target_modules": "all-linear"}


def policy(room: Room, kind: str) -> dict[str, Any]:
    """All weights, a new adapter (its reference: the model without it) or one that is trained on (its own copy)."""
    torch.manual_seed(4)
    if kind == "new adapter":
        return {"given": {"peft_config": LoraConfig(**LORA)}}
    if kind == "full":
        return {}
    model = get_peft_model(room.model(), LoraConfig(**LORA))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return {"model": model}


def trained(room: Room, folder: Path, kind: str, resume: bool, **config: Any) -> SAILTrainer:
    trainer = room.trainer(
        **policy(room, kind),
        per_device_train_batch_size=3,
        gradient_accumulation_steps=3,
        batch_size=8,
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=INTERRUPTED,
        lr_scheduler_type="cosine",
        **{**ALL, **config},
    )
    trainer.args.output_dir = str(folder)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{INTERRUPTED}") if resume else None)
    return trainer


def logs(trainer: SAILTrainer) -> list[dict[str, float]]:
    """What was logged of each step, but for seconds."""
    return [
        {name: value for name, value in entry.items() if "seconds" not in name}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


@pytest.mark.parametrize(
    "kind, staleness, baseline",
    [
        pytest.param("full", 0, "none", marks=pytest.mark.slow),
        ("full", 2, "moving"),
        ("new adapter", 0, "moving"),
        pytest.param("new adapter", 2, "none", marks=pytest.mark.slow),
        pytest.param("adapter trained on", 0, "none", marks=pytest.mark.slow),
        ("adapter trained on", 2, "moving"),
    ],
)
def test_a_resumed_training_is_the_uninterrupted_one(
    room: Room, tmp_path: Path, kind: str, staleness: int, baseline: str
) -> None:
    config = {"staleness": staleness, "baseline": baseline}
    whole = trained(room, tmp_path, kind, resume=False, **config)
    saved = json.loads((tmp_path / f"checkpoint-{INTERRUPTED}/trainer_state.json").read_text())
    kept = saved["stateful_callbacks"]["SAILState"]["attributes"]["kept"]
    assert bool(kept["waiting"]) == (staleness > 0), "pairs sampled before the interruption wait for steps after it"
    resumed = trained(room, tmp_path, kind, resume=True, **config)
    assert whole.state.global_step == resumed.state.global_step == 3 * EPOCH
    assert len(logs(whole)) == 3 * EPOCH
    assert logs(resumed)[INTERRUPTED:] == logs(whole)[INTERRUPTED:]
    assert resumed.sail.realised == whole.sail.realised
    assert sum(resumed.sail.realised.values()) == 3 * 29
    assert resumed.sail.mean_preference == whole.sail.mean_preference
    assert (resumed.workshop.asked, resumed.workshop.rated) == (whole.workshop.asked, whole.workshop.rated)
    assert whole.workshop.asked > 0
    assert (whole.sail.baseline != 0) == (baseline == "moving")
    trainable = [(name, each) for name, each in whole.model.named_parameters() if each.requires_grad]
    assert trainable
    again = dict(resumed.model.named_parameters())
    assert all(torch.equal(each, again[name]) for name, each in trainable)


def test_at_the_end_of_an_epoch_too(room: Room, tmp_path: Path) -> None:
    """The step after the checkpoint is the first of an epoch, whose routes and order are its own."""
    options = {"save_strategy": "epoch", "num_train_epochs": 2, "staleness": 1, **ALL}
    runs = []
    for resume in (None, str(tmp_path / f"checkpoint-{EPOCH}")):
        trainer = room.trainer(**options)
        trainer.args.output_dir = str(tmp_path)
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer)
    assert logs(runs[0]) == logs(runs[1])
    assert runs[0].sail.realised == runs[1].sail.realised
    for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(one, other)


def test_a_second_training_without_a_checkpoint_begins_anew(room: Room, tmp_path: Path) -> None:
    """Nothing of SAIL's state is taken from a folder that nobody asked to resume from."""
    first = trained(room, tmp_path, "full", resume=False, baseline="moving")
    second = trained(room, tmp_path, "full", resume=False, baseline="moving")
    assert logs(second) == logs(first)
    assert second.sail.realised == first.sail.realised


class Crash(TrainerCallback):
    """Ends a training in the middle of a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == INTERRUPTED + 1:
            raise KeyboardInterrupt


def test_so_does_a_second_training_of_the_same_trainer(room: Room, tmp_path: Path) -> None:
    """Neither the baseline nor the waiting pairs of an attempt that crashed are used."""
    whole = room.trainer(**ALL, staleness=2, baseline="moving", num_train_epochs=2)
    whole.train()
    crashed = room.trainer(**ALL, staleness=2, baseline="moving", num_train_epochs=2)
    start = {name: value.clone() for name, value in crashed.model.state_dict().items()}
    crashed.add_callback(Crash())
    with pytest.raises(KeyboardInterrupt):
        crashed.train()
    assert crashed.sail.mean_preference is not None
    crashed.remove_callback(Crash)
    crashed.model.load_state_dict(start)
    crashed.optimizer = crashed.lr_scheduler = None
    crashed.train()
    assert [entry["loss"] for entry in logs(crashed)] == [entry["loss"] for entry in logs(whole)]
    assert crashed.sail.realised == whole.sail.realised
