"""The same loss and the same gradient for any split of a global batch, against one batch that is not split."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from cdpo.config.params import TrainingParams
from cdpo.step import Device
from cdpo.train.arguments import Precision, training_arguments
from cdpo.train.fit import make_trainer
from cdpo.train.rows import compared_rows, language_rows, read_splits
from cdpo.train.trl_adapter import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

BATCH = 8
ROUTER = {"router_aux_loss_coef": 0.0}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, ROUTER),
    "rm": (RewardTrainer, RewardConfig, {"center_rewards_coefficient": 0.1}),
    "dpo": (DPOTrainer, DPOConfig, {**ROUTER, "beta": 0.3, "precompute_ref_log_probs": True}),
    "dpo sft": (
        DPOTrainer,
        DPOConfig,
        {
            **ROUTER,
            "precompute_ref_log_probs": True,
            "loss_type": ["sigmoid", "sft", "ipo"],
            "loss_weights": [0.5, 2.0, 0.1],
            "ld_alpha": 0.5,
        },
    ),
}


def in_double(model: Any) -> Any:
    """The model with a language-model head in float64: TRL's fused one computes in float32 whatever it is given."""

    def forward(input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        mask = labels[:, 1:] != -100
        found = logits.log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
        nothing = torch.zeros_like(found)
        return SimpleNamespace(
            log_probs=found.masked_fill(~mask, 0.0),
            label_mask=mask,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )

    return forward


class Split:
    """One trainer per size of a micro-batch, over the same float64 model; ranks are run one after the other."""

    def __init__(self, world: Any, kind: str, policy: Any) -> None:
        self.world, (self.trainer, self.config, self.method), self.kind = world, KINDS[kind], kind
        params = {"learning_rate": 1.0, "batch_size": BATCH, "max_steps": 1}
        self.params = TrainingParams(**params)
        self.step = world.step("SFT", params, model=policy)
        self.tokenizer = AutoTokenizer.from_pretrained(policy)
        self.pairs = read_splits(self.step, self.params, self.tokenizer)
        auto = AutoModelForSequenceClassification if kind == "rm" else AutoModelForCausalLM
        torch.manual_seed(0)
        self.model = auto.from_pretrained(policy, dtype=torch.float64, **({"num_labels": 1} if kind == "rm" else {}))
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def gradient(self, micro: int, ranks: int, at: int) -> tuple[float, torch.Tensor]:
        """Loss and gradient of optimiser step `at` of the first epoch, as the ranks' average, which DDP takes."""
        losses, gradients = [], []
        for rank in range(ranks):
            loss, gradient = self.of_rank(micro, rank, ranks, at)
            losses.append(loss)
            gradients.append(gradient)
        return sum(losses) / ranks, torch.stack(gradients).mean(dim=0)

    def of_rank(self, micro: int, rank: int, ranks: int, at: int) -> tuple[float, torch.Tensor]:
        self.step.device = Device(micro_batch=micro)
        rows = {"sft": lambda rows: language_rows(rows, "completion"), "rm": compared_rows}.get(self.kind, list)(
            [dict(row) for row in self.pairs.train]
        )
        precision = Precision("fp32", torch.device("cpu"))
        trainer = make_trainer(
            self.trainer,
            self.step,
            self.params,
            model=self.model,
            arguments=training_arguments(self.config, self.step, self.params, precision, len(rows), **self.method),
            tokenizer=self.tokenizer,
            rows=rows,
            tune=rows[:2],
        )
        trainer.batches.rank, trainer.batches.ranks = rank, ranks
        if self.kind.startswith("dpo"):
            # a reference that is not the policy: log-ratios differ from zero
            for place, row in enumerate(rows):
                row["ref_chosen_logps"], row["ref_rejected_logps"] = -9.0 - place % 5, -11.0 + place % 3
        self.model.train()
        self.model.zero_grad()
        epoch = list(trainer.batches)
        steps = [
            epoch[start : start + trainer.batches.accumulation]
            for start in range(0, len(epoch), trainer.batches.accumulation)
        ]
        model = self.model if self.kind == "rm" else in_double(self.model)
        total = 0.0
        tokens = self.tokens(trainer, at) if self.kind == "sft" else None
        for batch in steps[at]:
            loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=tokens)
            if self.kind == "sft":
                loss = loss * ranks  # what TRL does where accelerate counts more than one process
            loss.backward()
            total += loss.item()
        return total, torch.cat([parameter.grad.flatten() for parameter in self.model.parameters()])

    def tokens(self, trainer: Any, at: int) -> torch.Tensor:
        """What Trainer counts over the micro-batches of all ranks: labelled tokens of the global batch."""
        count = 0
        rank = trainer.batches.rank
        for each in range(trainer.batches.ranks):
            trainer.batches.rank = each
            epoch = list(trainer.batches)
            size = trainer.batches.accumulation
            count += sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in epoch[at * size : (at + 1) * size])
        trainer.batches.rank = rank
        return torch.tensor(count)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [0, -1], ids=["a whole batch", "the last, incomplete batch"])
def test_any_split_gives_the_same_gradient(world, sft, kind: str, at: int) -> None:
    at = at % math.ceil(45 / BATCH)
    split = Split(world, kind, sft)
    loss, gradient = split.gradient(BATCH, 1, at)
    assert gradient.abs().max() > 1e-6
    for micro, ranks in ((4, 1), (3, 1), (1, 1), (4, 2), (1, 2), (1, 8)):
        again, other = split.gradient(micro, ranks, at)
        assert again == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(other, gradient, rtol=1e-9, atol=1e-13)
