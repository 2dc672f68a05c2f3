"""SAIL's responses from vLLM in the process that trains: its weights are the policy's, put in place before it samples.

It needs a GPU: vLLM's kernels for CPUs keep packed copies of the weights, which do not follow. Whether they did is
checked every time, on log-probabilities: a policy that samples from other weights than it trains is no policy.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from cdpo import trust
from cdpo.errors import StepError
from cdpo.generate.backend import Item, Sampled
from cdpo.generate.vllm_backend import sampling_of

if TYPE_CHECKING:
    from cdpo.config.params import SamplingParams

#: the share of the GPU's memory that vLLM takes beside the training, where devices.yaml says nothing
MEMORY = 0.3
#: nats per token by which vLLM's log-probabilities may differ from the policy's (mean over a response): two kernels
#: round differently, in bf16 by some hundredths; other weights differ by whole nats
APART = {"float32": 0.01, "float16": 0.1, "bfloat16": 0.2}


class VLLMSampler:
    """Answers prompts with the weights that a model has at the time."""

    def __init__(self, folder: str, dtype: str, options: Mapping[str, Any] | None = None) -> None:
        """`folder`: the model as it was loaded. `dtype`: what is computed in, by torch's name. `options`: arguments of
        vLLM's engine. Raises StepError where vLLM is not installed beside cdpo.
        """
        # in this process, where the policy's weights are, and nothing sent to anybody
        os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_DO_NOT_TRACK="1")
        try:
            from vllm.engine.arg_utils import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine
        except ImportError as error:
            raise StepError(
                f"backend: vllm, and vLLM cannot be imported beside cdpo ({error}): install it in this environment, or "
                "leave `backend` out"
            ) from error
        self._dtype = dtype
        arguments = {
            "gpu_memory_utilization": MEMORY,
            **(options or {}),
            "model": folder,
            "dtype": dtype,
            "skip_tokenizer_init": True,
            "load_format": "safetensors",
            "trust_remote_code": trust.allowed(folder),
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
            "disable_log_stats": True,
        }
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        #: mean difference of the log-probabilities at the last check, in nats per token
        self.apart = 0.0

    @classmethod
    def of(cls, model: Any, mixed_precision: str, options: Mapping[str, Any] | None) -> Self:
        """For a model that is trained with accelerate's `mixed_precision` (`no`, `fp16`, `bf16`)."""
        kinds = {"fp16": "float16", "bf16": "bfloat16"}
        dtype = kinds.get(mixed_precision) or str(model.dtype).removeprefix("torch.")
        return cls(model.config.name_or_path, dtype, options)

    def generate(
        self, model: Any, items: Sequence[Item], sampling: "SamplingParams", *, end_ids: Sequence[int]
    ) -> Iterator[tuple[int, Sampled]]:
        """(position, response) to each of `items` by `model` as it is now; see `Backend.generate`.

        Raises StepError where vLLM's probabilities are not those of `model`.
        """
        from vllm import SamplingParams as VLLMSamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": merged_weights(model)})
        self._engine.reset_prefix_cache()
        for at, item in enumerate(items):
            asked = VLLMSamplingParams(
                **sampling_of(item, sampling, end_ids),
                logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._engine.add_request(str(at), {"prompt_token_ids": item.prompt_ids}, asked)
        checked = False
        while self._engine.has_unfinished_requests():
            for request in self._engine.step():
                if not request.finished:
                    continue
                at, response = int(request.request_id), request.outputs[0]
                ids = list(response.token_ids)
                logprobs = [of[token].logprob for token, of in zip(ids, response.logprobs, strict=True)]
                if not checked:
                    self._check(model, items[at], ids, logprobs)
                    checked = True
                yield at, Sampled(ids, "stop" if ids[-1] in end_ids else "length", logprobs)

    def _check(self, model: Any, item: Item, ids: list[int], logprobs: list[float]) -> None:
        own = _logprobs(model, item.prompt_ids, ids)
        self.apart = sum(abs(mine - theirs) for mine, theirs in zip(own, logprobs, strict=True)) / len(ids)
        if not self.apart <= APART[self._dtype]:
            raise StepError(
                f"vLLM samples from other weights than those that are trained: log-probabilities differ by "
                f"{self.apart:.3g} nats per token, where {self._dtype} explains {APART[self._dtype]}. Leave `backend` "
                "out to sample from the model itself"
            )


def refuse_vllm(args: Any) -> None:
    """Raise StepError where vLLM cannot sample for a training with these arguments."""
    if args.device.type != "cuda" or args.world_size != 1:
        where = f"{args.world_size} processes" if args.world_size != 1 else f"a {args.device.type.upper()}"
        raise StepError(
            f"backend: vllm samples on one GPU, beside the policy that it follows, and this training runs on {where}: "
            "leave `backend` out to sample from the model itself"
        )


def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Each weight of a causal language model by its name in the checkpoint; those under an adapter with it added.

    The model stays as it is: merging in place and taking it back would round its weights every time.
    """
    if not isinstance(model, PeftModel):
        yield from model.named_parameters()
        return
    base = model.get_base_model()
    layers = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in base.named_parameters():
        owner, _, rest = name.rpartition(".base_layer.")
        if owner in layers:
            layer = layers[owner]
            value = parameter.detach()
            if rest == "weight":
                for adapter in layer.active_adapters:
                    value = value + layer.get_delta_weight(adapter).to(value.dtype)
            yield f"{owner}.{rest}", value
        elif ".lora_" not in name:
            yield name, parameter.detach()


def _logprobs(model: Any, prompt: list[int], ids: list[int]) -> list[float]:
    """Of each of `ids` after `prompt`, under `model` as it is, in nats."""
    fed = torch.tensor([prompt + ids], device=model.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(input_ids=fed, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    finally:
        model.train(training)
    found: list[float] = logits.log_softmax(-1).gather(-1, fed[0, len(prompt) :, None])[:, 0].tolist()
    return found
