"""SFT: train a model to give the chosen responses of a prepared dataset.

out/: the model (config.json, safetensors) or, with `lora`, its adapter (adapter_config.json), the tokenizer, and
scores.parquet: `split, prompt_id, loss`, where `loss` is a row's mean negative log-likelihood per token of the chosen
response, its end token included, for every row of `eval` and `tune`.
"""

from typing import Any, Literal

from cdpo.config.params import LabelNoiseParams, TrainingParams
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand


class SFTParams(LabelNoiseParams, TrainingParams):
    """Supervised fine-tuning on prompt and chosen response."""

    loss: Literal["completion", "all"] = "completion"
    """Tokens that are learned: those of the response, or those of the prompt too (as the released package did)."""


PIPELINE = Pipeline(
    name="SFT",
    version=1,
    params=SFTParams,
    takes={"data": "data", "model": "policy"},
    reads=("chosen",),
    gives="policy",
    rank=20,
    method=True,
    metrics={"loss": "loss"},
)


def run(step: Step) -> dict[str, Any]:
    from cdpo.memory import at_once
    from cdpo.models import load_tokenizer, set_threads
    from cdpo.train.arguments import Precision, training_arguments
    from cdpo.train.fit import fit, make_trainer
    from cdpo.train.micro_batch import settle_micro_batch
    from cdpo.train.reporting import Samples
    from cdpo.train.rows import language_rows, read_splits
    from cdpo.train.trainable import trainable_policy
    from cdpo.train.trl_adapter import SFTConfig, SFTTrainer

    params = SFTParams.model_validate(step.params)
    set_threads(step.device)
    precision = Precision.of(step, params)
    adapter = step.input("model_adapter") if step.has("model_adapter") else None
    tokenizer = load_tokenizer(step.input("model"), adapter, params.template)
    splits = read_splits(step, params, tokenizer)
    settle_micro_batch(step, params, splits)
    rows, tune, held_out = (language_rows(each, params.loss) for each in (splits.train, splits.tune, splits.eval))

    trainer = make_trainer(
        SFTTrainer,
        step,
        params,
        model=trainable_policy(step, params, precision),
        arguments=training_arguments(SFTConfig, step, params, precision, len(rows), router_aux_loss_coef=0.0),
        tokenizer=tokenizer,
        rows=rows,
        tune=tune,
        samples=Samples(step, tokenizer, splits.tune),
    )
    with at_once(trainer.args.per_device_train_batch_size):
        return fit(trainer, step, tokenizer, precision, splits, tune, held_out, names={})


if __name__ == "__main__":
    run_by_hand(run)
