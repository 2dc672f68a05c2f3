"""The model that a step trains: all of its weights in fp32, or an adapter over frozen ones.

no lora, no adapter given      all weights
no lora, an adapter given      all weights, after the adapter is merged into them
lora, no adapter given         a new adapter (its reference: the model without it)
lora, an adapter given         that adapter, trained on (its reference: a frozen copy)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, set_seed

from cdpo.config.params import LoraParams, TrainingParams
from cdpo.data.tokens import end_token_id
from cdpo.errors import StepError
from cdpo.models import DTYPES, read_weights
from cdpo.step import Device, Step
from cdpo.train.arguments import Precision
from cdpo.train.sharded import cuts_weights, is_sharded, whole_again

if TYPE_CHECKING:
    from cdpo.pipelines.reference import REFERENCEParams


def trainable_policy(step: Step, params: TrainingParams, precision: Precision) -> Any:
    """A causal language model, ready to be trained, on the step's device."""
    return _trainable(step, params, precision, AutoModelForCausalLM, "CAUSAL_LM", num_labels=None)


def trainable_reward(step: Step, params: TrainingParams, precision: Precision, pad_token_id: int) -> Any:
    """A sequence classifier with one label. The head is new, drawn with the step's seed, unless the model has one."""
    model = _trainable(step, params, precision, AutoModelForSequenceClassification, "SEQ_CLS", num_labels=1)
    model.config.get_text_config().pad_token_id = pad_token_id
    return model


def reference_policy(step: Step, params: "REFERENCEParams", precision: Precision) -> Any:
    """The policy as a step has it before it trains, for which it is the reference. An adapter of its own is any new
    one, which adds nothing yet: transformers wants one over weights in 4 bits."""
    lora = LoraParams(r=1) if params.trains_adapter else None
    model = _read(
        step, params.attn_implementation, params.quantization, lora, precision, AutoModelForCausalLM, num_labels=None
    )
    return model if lora is None or step.has("model_adapter") else _new_adapter(model, lora, "CAUSAL_LM")


def kept_in(device: Device, trains_adapter: bool, precision: Precision) -> str:
    """The type that a policy's weights are kept in: those that are trained in fp32, those beneath an adapter in what
    they compute in. Parts are cut of weights of one type, that of the adapter."""
    return precision.compute if trains_adapter and not is_sharded(device) else "fp32"


def _trainable(
    step: Step, params: TrainingParams, precision: Precision, kind: Any, task: str, num_labels: int | None
) -> Any:
    set_seed(step.seed32_for("new weights"))
    model = _read(step, params.attn_implementation, params.quantization, params.lora, precision, kind, num_labels)
    if params.lora is None:
        return model
    if not step.has("model_adapter"):
        return _new_adapter(model, params.lora, task)
    _same_adapter(model.peft_config["default"], params.lora, step.input("model_adapter"))
    return model


def _read(
    step: Step,
    attn_implementation: str,
    quantization: str | None,
    lora: LoraParams | None,
    precision: Precision,
    kind: Any,
    num_labels: int | None,
) -> Any:
    """The step's model with the adapter that it was given, which is merged into it where no adapter is trained."""
    model = read_weights(
        kind,
        step.input("model"),
        DTYPES[kept_in(step.device, lora is not None, precision)],
        attn_implementation,
        device=precision.device,
        quantization=quantization,
        num_labels=num_labels,
    )
    if quantization is not None:
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if not step.has("model_adapter"):
        return model
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, step.input("model_adapter"), is_trainable=lora is not None)
    # peft freezes what lies under an adapter
    return model if lora is not None else model.merge_and_unload().requires_grad_(True)


def _new_adapter(model: Any, lora: LoraParams, task: str) -> Any:
    from peft import LoraConfig, get_peft_model

    try:
        return get_peft_model(model, LoraConfig(task_type=task, **lora.model_dump()))
    except ValueError as error:
        raise StepError(f"lora: {error} (target_modules: {lora.target_modules})") from error


def _same_adapter(given: Any, asked: LoraParams, folder: Path) -> None:
    """An adapter that is trained on keeps its shape; a step that writes another one would not get it."""
    differs = [
        f"{name}: {getattr(given, name)} there, {getattr(asked, name)} here"
        for name in ("r", "lora_alpha")
        if getattr(given, name) != getattr(asked, name)
    ]
    if isinstance(asked.target_modules, list) and set(asked.target_modules) != set(given.target_modules):
        differs.append(f"target_modules: {sorted(given.target_modules)} there, {sorted(asked.target_modules)} here")
    if differs:
        raise StepError(
            f"the adapter {folder} is trained on, and its shape is not this step's ({'; '.join(differs)}); "
            "write the same `lora:` for both, or leave `lora` out here to train all weights of the merged model"
        )


def save_model(trainer: Any, tokenizer: Any, out: Path) -> None:
    """Write the trained model, or its one adapter, and the tokenizer to `out`. Call on every rank; rank 0 writes.

    Raises StepError where a weight is NaN or infinite: such a model is never published, whatever the watchdog is told.
    """
    _refuse_not_finite(trainer.model)
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    trainer.accelerator.wait_for_everyone()


def _refuse_not_finite(model: Any) -> None:
    wrong = [name for name, weights in model.named_parameters() if not bool(torch.isfinite(weights).all())]
    if wrong:
        total = sum(1 for _ in model.parameters())
        raise StepError(
            f"training has diverged: {len(wrong)} of {total} weight tensors hold NaN or infinite values ({wrong[0]}). "
            "Lower learning_rate, raise warmup_ratio, or compute in bf16 or fp32 where dtype is fp16"
        )


def settle(trainer: Any, step: Step, precision: Precision) -> None:
    """Bring a trained model into the state in which it is saved, so that what is evaluated is what later steps read.

    The frozen reference adapter goes; weights trained in fp32 take the type that they computed in; what was in parts is
    whole again.
    """
    from peft import PeftModel

    if cuts_weights(step.device):
        whole_again(trainer, step, precision)
        return
    model = trainer.model
    if isinstance(model, PeftModel):
        if "ref" in model.peft_config:
            model.delete_adapter("ref")
    else:
        model.to(DTYPES[precision.compute])


def pad_apart_from_end(tokenizer: Any) -> Any:
    """Give the tokenizer of a reward model a pad token that no row ends with.

    transformers takes the reward at the last token that is not the pad token. Where the pad token is also the one that
    ends a turn (pad = EOS), that would be the token before it.
    """
    end = end_token_id(tokenizer)
    if tokenizer.pad_token_id == end:
        special = [tokenizer.unk_token_id, *sorted(tokenizer.added_tokens_decoder), *range(2)]
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(next(at for at in special if at not in (None, end)))
    return tokenizer
