"""The head that TRL lays over a model, a second time: log-probabilities at a temperature beside those at 1."""

import functools
import types
from dataclasses import dataclass
from typing import Any

from trl.trainer import utils as trl_utils

#: what a configuration calls a factor or cap on the logits that comes after the head
LOGIT_SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def add_sampling_head(model: Any, temperature: float) -> None:
    """With `sampled` (a mask over sequences), `model(...)` also gives their log-probabilities at a temperature.

    The hidden states are those of the one pass through the model; only the head is applied again, to those sequences.
    """
    fused = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, sampled: Any = None, **options: Any) -> Any:
        if sampled is None:
            return fused(*args, **options)
        hidden: list[Any] = []
        capture = self.base_model.register_forward_hook(lambda _, __, given: hidden.append(given.last_hidden_state))
        try:
            outputs = fused(*args, **options)
        finally:
            capture.remove()
        labels = options["labels"][:, 1:]
        wanted = (labels != -100) & sampled[:, None]
        if not wanted.any():  # nothing for the kernel to do
            return SampledOutput(**outputs, sampling_logps=outputs.log_probs.new_zeros(len(sampled)))
        head = self.get_output_embeddings()
        log_probs = trl_utils._ChunkedLogProbFunction.apply(
            hidden[0][:, -labels.size(1) - 1 : -1][wanted],
            head.weight,
            head.bias,
            labels[wanted],
            temperature,
            trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE,
            None,
            1.0,
            ("log_probs",),
        )[0]
        summed = log_probs.new_zeros(wanted.shape).masked_scatter(wanted, log_probs).sum(dim=1)
        return SampledOutput(**outputs, sampling_logps=summed)

    model.forward = types.MethodType(forward, model)


@dataclass
class SampledOutput(trl_utils.FusedCausalLMOutput):  # type: ignore[misc]
    """`sampling_logps` [sequences]: see DPOTrainer.run_model."""

    sampling_logps: Any = None
