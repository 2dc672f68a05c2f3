"""The backend that a step asks for, ready to answer."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.generate.backend import Backend

if TYPE_CHECKING:
    from cdpo.config.generation import GenerationParams
    from cdpo.step import Step

#: prompts that are answered at once where devices.yaml says nothing
BATCH = 32


def open_backend(step: "Step", params: "GenerationParams", tokenizer: Any, prompts: int) -> Backend:
    """What answers the `prompts` prompts of `step`: its policy is the input `model`, with `model_adapter`."""
    if params.backend == "openai":
        return _openai(step, params, tokenizer)
    from cdpo.models import load_policy, torch_device

    adapter = step.input("model_adapter") if step.has("model_adapter") else None
    if params.backend == "vllm":
        return _vllm(step, params, adapter)
    model = load_policy(
        step.input("model"),
        adapter,
        dtype=params.dtype,
        attn_implementation=params.attn_implementation,
        device=torch_device(step.device),
    )
    rows = batch_size(step, prompts)
    if params.batching == "continuous":
        from cdpo.generate.continuous_backend import ContinuousBackend

        return ContinuousBackend(model, rows=rows)
    from cdpo.generate.transformers_backend import TransformersBackend

    return TransformersBackend(model, pad_id=tokenizer.pad_token_id, batch_size=rows)


def batch_size(step: "Step", prompts: int) -> int:
    """Of how many prompts a batch of this step's is."""
    return step.device.fewer(min(step.device.micro_batch or BATCH, max(1, prompts)))


def _vllm(step: "Step", params: "GenerationParams", adapter: Path | None) -> Backend:
    import torch

    from cdpo.generate.vllm_backend import VllmBackend
    from cdpo.models import compute_dtype

    return VllmBackend(
        step.input("model"),
        adapter,
        # not `torch_device`, which would take memory of the card for this process
        dtype=compute_dtype(params.dtype, step.input("model"), torch.device(step.device.kind)),
        device=step.device.kind,
        log=step.work / "vllm.log",
        python=step.device.vllm.get("python"),
        options=step.device.vllm.get("options"),
        alive=step.alive,
    )


def _openai(step: "Step", params: "GenerationParams", tokenizer: Any) -> Backend:
    from cdpo.engine.services.client import Service
    from cdpo.generate.endpoint import Endpoint
    from cdpo.generate.openai_backend import OpenAIBackend

    service = Service(step)
    given = service.given
    if "url" in given:
        step.note(f"the server at {given['url']} is taken to serve {step.input('model')}: cdpo cannot see its weights")
    # it has one random stream for all: the seeds of requests that overlap would mean nothing
    concurrency = 1 if given["api"] == "transformers" else given["concurrency"]
    endpoint = Endpoint(
        service.look,
        concurrency=concurrency,
        timeout=given["timeout_seconds"],
        retries=given["retries"],
        api_key=os.environ.get(given["api_key"]) if given["api_key"] else None,
        alive=step.alive,
    )
    return OpenAIBackend(endpoint, tokenizer, server=given["api"], route=params.endpoint, note=step.note)
