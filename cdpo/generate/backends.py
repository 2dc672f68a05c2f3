"""The backend that a step asks for, ready to answer."""

from typing import TYPE_CHECKING, Any

from cdpo.generate.backend import Backend

if TYPE_CHECKING:
    from cdpo.config.generation import GenerationParams
    from cdpo.step import Step

#: prompts that are answered at once where devices.yaml says nothing
BATCH = 32


def open_backend(step: "Step", params: "GenerationParams", tokenizer: Any, prompts: int) -> Backend:
    """What answers the `prompts` prompts of `step`: its policy is the input `model`, with `model_adapter`."""
    if params.backend == "transformers":
        return _transformers(step, params, tokenizer, prompts)
    raise NotImplementedError(params.backend)


def batch_size(step: "Step", prompts: int) -> int:
    """Of how many prompts a batch of this step's is."""
    return step.device.fewer(min(step.device.micro_batch or BATCH, max(1, prompts)))


def _transformers(step: "Step", params: "GenerationParams", tokenizer: Any, prompts: int) -> Backend:
    from cdpo.generate.transformers_backend import TransformersBackend
    from cdpo.models import load_policy, torch_device

    model = load_policy(
        step.input("model"),
        step.input("model_adapter") if step.has("model_adapter") else None,
        dtype=params.dtype,
        attn_implementation=params.attn_implementation,
        device=torch_device(step.device),
    )
    return TransformersBackend(model, pad_id=tokenizer.pad_token_id, batch_size=batch_size(step, prompts))
