"""What the methods that learn from pairs share: DPO, Dr. DPO and SAIL's, which differ in their parameters alone."""

from typing import Any

from cdpo.config.params import TrainingParams
from cdpo.config.preferences import PreferenceParams
from cdpo.data.prepared import read_split
from cdpo.errors import StepError
from cdpo.measured import micro_batch
from cdpo.memory import at_once
from cdpo.models import load_tokenizer, set_threads
from cdpo.sail.routes import Mixture
from cdpo.sail.trainer import SAILConfig, SAILTrainer
from cdpo.score.scorer import RewardScorer
from cdpo.step import Step
from cdpo.train.arguments import Precision, training_arguments
from cdpo.train.batches import Row, refuse_split
from cdpo.train.fit import fit, make_trainer
from cdpo.train.loss_types import COUPLED
from cdpo.train.losses import own_loss
from cdpo.train.micro_batch import settle_micro_batch
from cdpo.train.reference import Held
from cdpo.train.reporting import Samples
from cdpo.train.rows import read_splits
from cdpo.train.sharded import cuts_weights
from cdpo.train.trainable import trainable_policy

#: responses sampled, and texts rated, at once where devices.yaml says nothing
GENERATION_BATCH = 64


def train_preferences(step: Step, params: PreferenceParams) -> dict[str, Any]:
    """Train the step's policy on its pairs, and where `params` has a mixture on pairs of its own; the step's summary.

    `params` may be of any of the methods: the fields that SAILConfig has too are handed to it.
    """
    set_threads(step.device)
    refuse_split(
        params.loss_types, params.batch_size, micro_batch(step.device, params.batch_size), step.device.processes
    )
    precision = Precision.of(step, params)
    adapter = step.input("model_adapter") if step.has("model_adapter") else None
    tokenizer = load_tokenizer(step.input("model"), adapter, params.template)
    mixture = _mixture(params)
    if mixture.samples and cuts_weights(step.device):
        raise StepError(
            f"{step.pipeline} samples from the policy while it trains, which needs whole weights: name zero2.yaml in "
            "place of its accelerate_config in devices.yaml"
        )
    splits = read_splits(step, params, tokenizer, room=getattr(params, "room", 0))
    settle_micro_batch(step, params, splits)
    scorer = None
    if mixture.rewards:
        scorer = _load_scorer(step, params)
        _add_prompts(step, splits.train)
    arguments = training_arguments(
        SAILConfig,
        step,
        params,
        precision,
        len(splits.train),
        loss_type=params.loss_types,
        generation_batch_size=step.device.fewer(GENERATION_BATCH),
        router_aux_loss_coef=0.0,
        vllm_options=step.device.vllm.get("options"),
        **_own_fields(params),
    )
    trainer = make_trainer(
        SAILTrainer,
        step,
        params,
        model=trainable_policy(step, params, precision),
        arguments=arguments,
        tokenizer=tokenizer,
        rows=splits.train,
        tune=splits.tune,
        samples=Samples(step, tokenizer, splits.tune),
        reward_model=scorer,
        loss_function=own_loss(step),
        rows_follow=True,
    )
    if trainer.bias_of_t1.startswith("biased"):
        step.note(f"T1 is {trainer.bias_of_t1}")
    held = Held.of(step, params, precision)
    with at_once(None if COUPLED & set(params.loss_types) else arguments.per_device_train_batch_size):
        for name, rows in (("train", trainer.rows_seen()), ("tune", splits.tune), ("eval", splits.eval)):
            if held is not None:
                held.put(name, rows)
            else:
                trainer.add_reference(rows, step.checkpoints / f"reference-{name}")
        summary = fit(trainer, step, tokenizer, precision, splits, splits.tune, splits.eval, names={})
    return summary | {"reference_rows": trainer.reference_rows} | _realised(trainer)


def _mixture(params: PreferenceParams) -> Mixture:
    """The routes that the parameters name; those of other methods stay at 0."""
    named = {name: getattr(params, name) for name in Mixture.__dataclass_fields__ if hasattr(params, name)}
    return Mixture(**named)


def _own_fields(params: PreferenceParams) -> dict[str, Any]:
    """The method's own parameters that SAILConfig has too; training_arguments sets what all training steps share."""
    shared = {*TrainingParams.model_fields, "loss_type"}
    names = [name for name in type(params).model_fields if name in SAILConfig.__dataclass_fields__]
    return {name: getattr(params, name) for name in names if name not in shared}


def _load_scorer(step: Step, params: Any) -> RewardScorer:
    return RewardScorer.load(
        step,
        dtype=params.dtype,
        attn_implementation=params.attn_implementation,
        template=params.reward_template,
        reverse=params.reverse,
        batch_size=step.device.fewer(GENERATION_BATCH),
    )


def _add_prompts(step: Step, rows: list[Row]) -> None:
    """Put the prompt's messages into the rows: a reward model reads them by its own template."""
    prompts = {row["prompt_id"]: row["prompt"] for row in read_split(step.input("data"), "train")}
    for row in rows:
        row["prompt"] = prompts[row["prompt_id"]]


def _realised(trainer: SAILTrainer) -> dict[str, Any]:
    """What SAIL's routes came to, for the summary; nothing where there was no mixture."""
    if trainer.mixture.total == 0:
        return {}
    rows = sum(trainer.sail.realised.values())
    shares = {route.name: round(count / rows, 6) for route, count in trainer.sail.realised.items()}
    sampled_by = {"backend": trainer.args.backend} if trainer.mixture.samples else {}
    asked = {route.name: round(trainer.mixture.share(route), 6) for route in trainer.sail.realised}
    return {"sail": {"asked": asked, "realised": shares, "rows": rows, "t1": trainer.bias_of_t1} | sampled_by}
