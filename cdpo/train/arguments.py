"""From a step's parameters and device to transformers' TrainingArguments, and whether it got what it asked for."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from cdpo.config.params import ModelLoading, TrainingParams
from cdpo.errors import StepError
from cdpo.measured import micro_batch
from cdpo.models import compute_dtype, torch_device
from cdpo.step import Device, Step
from cdpo.train.batches import slots
from cdpo.train.sharded import forget_parts, refuse_unshardable

#: points of a curve, about
LOGGED = 200


@dataclass(frozen=True)
class Precision:
    """`compute` is what matrices are multiplied in; the weights that are trained are kept in fp32."""

    compute: str
    device: torch.device

    @classmethod
    def of(cls, step: Step, params: ModelLoading) -> "Precision":
        device = torch_device(step.device)
        return cls(compute_dtype(params.dtype, step.input("model"), device), device)


def training_arguments(
    config: Any, step: Step, params: TrainingParams, precision: Precision, rows: int, **method: Any
) -> Any:
    """A `config` (SFTConfig, RewardConfig, DPOConfig) to train on so many rows; `method` holds the method's own fields.

    Trainer itself reports nothing to anybody (trackers have processes of their own: cdpo/train/tracking.py), and no
    setting depends on the environment. Raises StepError where the processes are not those that the step asked for.
    """
    refuse_unshardable(step.device, params, precision.compute)
    micro = micro_batch(step.device, params.batch_size)
    total = params.max_steps or math.ceil(params.num_train_epochs * math.ceil(rows / params.batch_size))
    evaluates = params.eval_steps is not None
    arguments = config(
        output_dir=str(step.checkpoints),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=slots(params.batch_size, micro, step.device.processes),
        num_train_epochs=params.num_train_epochs,
        max_steps=params.max_steps or -1,
        learning_rate=params.learning_rate,
        lr_scheduler_type=params.lr_scheduler_type,
        warmup_steps=params.warmup_ratio,
        optim=params.optim,
        weight_decay=params.weight_decay,
        adam_beta1=params.adam_beta1,
        adam_beta2=params.adam_beta2,
        max_grad_norm=params.max_grad_norm,
        seed=step.seed32_for("training"),
        # told of a CPU, accelerate would forget DeepSpeed (see cdpo/engine/ranks/rank.py)
        use_cpu=step.device.kind == "cpu" and step.device.distributed_type != "DEEPSPEED",
        ddp_backend="gloo" if step.device.kind == "cpu" and step.device.distributed_type == "DEEPSPEED" else None,
        # of DeepSpeed's precisions only autocast is asked, by cdpo/train/sharded.py
        bf16=precision.compute == "bf16" and step.device.distributed_type != "DEEPSPEED",
        fp16=precision.compute == "fp16",
        gradient_checkpointing=step.device.kind != "cpu",
        ddp_find_unused_parameters=False,
        dataloader_num_workers=0,
        logging_strategy="steps",
        logging_steps=max(1, total // LOGGED),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        eval_strategy="steps" if evaluates else "no",
        eval_steps=params.eval_steps,
        # the best weights so far; all other checkpoints are cdpo/train/checkpoints.py's affair
        save_strategy="best" if params.load_best_model_at_end else "no",
        load_best_model_at_end=params.load_best_model_at_end,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False if evaluates else None,
        max_length=None,
        **method,
    )
    check_processes(step.device, arguments)
    forget_parts()
    if arguments.mixed_precision not in ("no", precision.compute):
        raise StepError(
            f"this step computes in {precision.compute} and its launcher in {arguments.mixed_precision}: take "
            "mixed_precision out of the accelerate config, or write the same `dtype` in the task"
        )
    return arguments


def check_processes(device: Device, arguments: Any) -> None:
    """Refuse to train on other processes than were asked for: a launcher that falls back to one says nothing itself."""
    state = arguments.distributed_state
    got = (arguments.world_size, state.distributed_type.value if state is not None else "NO")
    plain = "NO" if device.processes == 1 else "MULTI_CPU" if device.kind == "cpu" else "MULTI_GPU"
    # accelerate says FSDP only once a trainer is made (see cdpo/train/sharded.py)
    kinds = {"NO": plain, "FSDP": "MULTI_GPU"}
    asked = (device.processes, kinds.get(device.distributed_type, device.distributed_type))
    if got != asked:
        raise StepError(
            f"the step asked for {asked[0]} process(es), {asked[1]}, and runs on {got[0]}, {got[1]}: "
            "check `processes` and `launcher` in devices.yaml (accelerate launch silently starts one process on CPUs)"
        )
