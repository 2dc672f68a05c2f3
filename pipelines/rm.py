"""RM: train a Bradley-Terry reward model on the preferences of a prepared dataset.

out/: a sequence-classification model with one label or, with `lora`, its adapter, the tokenizer (its pad token is never
the one that ends a turn, so that the end token of a response is what gets the reward), and scores.parquet: `split,
prompt_id, rm/loss, rm/accuracy, rm/margin, rm/chosen, rm/rejected` for every row of `eval` and `tune`.
"""

from typing import Any

from pydantic import model_validator

from cdpo.config.params import LabelNoiseParams, Positive, TrainingParams
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand


class RMParams(LabelNoiseParams, TrainingParams):
    """Reward model: -log sigmoid(reward(chosen) - reward(rejected)), Bradley and Terry 1952, arXiv:2203.02155 eq. 1."""

    center_rewards_coefficient: Positive | None = None
    """Adds this times (reward(chosen) + reward(rejected))^2, which holds them near 0 (arXiv:2312.09244, eq. 2)."""

    @model_validator(mode="after")
    def _no_dropout(self) -> "RMParams":
        if self.lora is not None and self.lora.lora_dropout:
            raise ValueError("a reward model is trained without dropout: leave lora_dropout at 0")
        return self


PIPELINE = Pipeline(
    name="RM",
    version=1,
    params=RMParams,
    takes={"data": "data", "model": "base"},
    reads=("chosen", "rejected"),
    gives="reward",
    rank=30,
    method=True,
    metrics={"rm/accuracy": "rm/accuracy", "rm/margin": "rm/margin", "rm/loss": "rm/loss"},
)

_COLUMNS = {name: f"rm/{name}" for name in ("loss", "accuracy", "margin", "chosen", "rejected")}


def run(step: Step) -> dict[str, Any]:
    from cdpo.memory import at_once
    from cdpo.models import load_tokenizer, set_threads
    from cdpo.train.arguments import Precision, training_arguments
    from cdpo.train.fit import fit, make_trainer
    from cdpo.train.micro_batch import settle_micro_batch
    from cdpo.train.rows import compared_rows, read_splits
    from cdpo.train.trainable import pad_apart_from_end, trainable_reward
    from cdpo.train.trl_adapter import RewardConfig, RewardTrainer

    params = RMParams.model_validate(step.params)
    set_threads(step.device)
    precision = Precision.of(step, params)
    adapter = step.input("model_adapter") if step.has("model_adapter") else None
    tokenizer = pad_apart_from_end(load_tokenizer(step.input("model"), adapter, params.template))
    splits = read_splits(step, params, tokenizer)
    settle_micro_batch(step, params, splits)
    rows, tune, held_out = (compared_rows(each) for each in (splits.train, splits.tune, splits.eval))

    trainer = make_trainer(
        RewardTrainer,
        step,
        params,
        model=trainable_reward(step, params, precision, tokenizer.pad_token_id),
        arguments=training_arguments(
            RewardConfig,
            step,
            params,
            precision,
            len(rows),
            center_rewards_coefficient=params.center_rewards_coefficient,
        ),
        tokenizer=tokenizer,
        rows=rows,
        tune=tune,
    )
    with at_once(trainer.args.per_device_train_batch_size):
        return fit(trainer, step, tokenizer, precision, splits, tune, held_out, names=_COLUMNS)


if __name__ == "__main__":
    run_by_hand(run)
