"""Training with DeepSpeed ZeRO or FSDP: optimiser state, gradients and weights shared out among the processes.

What is computed is what plain data parallelism computes: weights in fp32, matrices multiplied in the task's dtype by
torch's autocast, the task's clipping and accumulation, micro-batches weighted by their share of the global batch.
`obey` brings a trainer to that and raises StepError where its launcher gave it anything else.

ZeRO-3 and FSDP cut the weights too (`cuts_weights`): while such a trainer trains, a pass through the model needs all
ranks. Before and after, each rank has the whole model (`whole_again`).
"""

import contextlib
import functools
import gc
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME
from trl.trainer import utils as trl_utils

from cdpo import trust
from cdpo.config.params import TrainingParams
from cdpo.errors import StepError
from cdpo.models import DTYPES, read_weights
from cdpo.step import Device, Step

if TYPE_CHECKING:
    from cdpo.train.arguments import Precision

#: all that TRL's losses ask of its head
HEAD_OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def is_sharded(device: Device) -> bool:
    """Whether the processes share more than the rows."""
    return device.distributed_type in ("DEEPSPEED", "FSDP")


def cuts_weights(device: Device) -> bool:
    """Whether no process holds the weights as a whole while it trains."""
    return device.zero_stage == 3 or device.distributed_type == "FSDP"


def refuse_unshardable(device: Device, params: TrainingParams, compute: str) -> None:
    """Raise StepError for what would not compute the same with optimiser or weights in parts."""
    if not is_sharded(device):
        return
    kind = device.distributed_type
    why = None
    if params.optim == "adafactor":
        why = f"adafactor looks at whole matrices, of which {kind} gives a process a part: take another optim"
    elif params.quantization is not None:
        why = f"{kind} shares out no quantised weights: leave quantization out of the task"
    elif compute == "fp16":
        why = f"{kind} scales losses for fp16 in a way of its own: write `dtype: bf16` in the task"
    if why is not None:
        raise StepError(f"{why}, or leave accelerate_config out of devices.yaml (plain data parallelism)")


def obey(trainer: Any, device: Device, compute: str) -> None:
    """See that a trainer just made computes what its step asks for, on the processes and in the parts asked for."""
    state = trainer.accelerator.state
    kind = state.distributed_type.value
    if is_sharded(device) and kind != device.distributed_type:
        raise StepError(f"devices.yaml asks for {device.distributed_type}, and the trainer was given {kind}")
    if kind == "DEEPSPEED":
        _obey_deepspeed(trainer, device, compute)
    elif kind == "FSDP":
        _obey_fsdp(trainer, device, compute)
    trainer.in_step = cuts_weights(device) and device.processes > 1


def _obey_deepspeed(trainer: Any, device: Device, compute: str) -> None:
    args, settings = trainer.args, trainer.accelerator.state.deepspeed_plugin.deepspeed_config
    asked = {
        "zero_optimization.stage": device.zero_stage,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "train_batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * device.processes,
        "gradient_clipping": args.max_grad_norm,
        # either would round the weights themselves; autocast is what every other launcher computes
        "bf16.enabled": False,
        "fp16.enabled": False,
    }
    for name, value in asked.items():
        given: Any = settings
        for part in name.split("."):
            given = given.get(part)
        if given != value:
            raise StepError(f"the step asks DeepSpeed for {name} {value}, and its settings say {given}")
    settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    if compute != "fp32":
        # weights and gradients travel in fp32: DDP rounds neither
        whole: dict[str, list[str]] = {"lower_precision_safe_modules": []}
        settings["torch_autocast"] = {"enabled": True, "dtype": str(DTYPES[compute]), **whole}
        # accelerate leaves precision to DeepSpeed's engine, which does not see the model when it is scored
        trainer.accelerator.autocast = functools.partial(torch.autocast, args.device.type, DTYPES[compute])
    forget_parts()


def _obey_fsdp(trainer: Any, device: Device, compute: str) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != device.fsdp_version:
        raise StepError(f"devices.yaml asks for FSDP {device.fsdp_version}, and accelerate gave {plugin.fsdp_version}")
    # FSDP's own mixed precision would round weights and sums of gradients, and in its place accelerate leaves out
    # autocast, which chooses the types everywhere else
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if compute != "fp32":
        trainer.autocast_smart_context_manager = functools.partial(
            torch.autocast, trainer.args.device.type, DTYPES[compute]
        )


@contextlib.contextmanager
def training(trainer: Any) -> Iterator[None]:
    """While weights are in parts: transformers and TRL ask a global setting whether they are (ZeRO-3)."""
    plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
    if plugin is not None:
        from transformers.integrations.deepspeed import set_hf_deepspeed_config

        set_hf_deepspeed_config(plugin.hf_ds_config)
    try:
        yield
    finally:
        if plugin is not None:
            forget_parts()


def forget_parts() -> None:
    """Have models read whole from here on: transformers would leave each rank its part of them, ready for ZeRO-3."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def whole_again(trainer: Any, step: Step, precision: "Precision") -> None:
    """Give every rank the whole of a model that was trained in parts, in the type that it computed in.

    Call on every rank, after training. The first one hands the weights over through a folder of the step; the optimiser
    and the parts are given up.
    """
    model, handed = trainer.model, step.work / "whole"
    adapter = isinstance(model, PeftModel)
    kind = _plain_class(model.get_base_model() if adapter else model)
    attention = model.config._attn_implementation
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # on the first rank
    if trainer.is_world_process_zero():
        model.save_pretrained(handed, state_dict=weights, **({"selected_adapters": ["default"]} if adapter else {}))
    trainer.accelerator.wait_for_everyone()
    _give_up_parts(trainer)
    del model, weights
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    base = step.input("model") if adapter else handed
    if trust.allowed(step.input("model")):
        trust.allow([handed])
    read = read_weights(kind, base, DTYPES[precision.compute], attention, device=precision.device)
    if read.get_output_embeddings() is not None:  # a language model: it is scored through TRL's head
        trl_utils.add_fused_lm_head(read, outputs=HEAD_OUTPUTS)
    trainer.model = trainer.model_wrapped = PeftModel.from_pretrained(read, handed) if adapter else read
    trainer.in_step = False
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        shutil.rmtree(handed)


def _plain_class(model: Any) -> Any:
    """The model's class in transformers, or in code that it brings; FSDP makes one of its own of it."""
    known = ("transformers.", f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")
    return next(each for each in type(model).__mro__ if each.__module__.startswith(known))


def _give_up_parts(trainer: Any) -> None:
    if trainer.is_deepspeed_enabled:
        trainer.model_wrapped.destroy()
        trainer.deepspeed = None
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    for name in ("model", "optimizer", "lr_scheduler"):
        setattr(trainer.callback_handler, name, None)
    trainer.accelerator.free_memory()
