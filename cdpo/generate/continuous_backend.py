"""Responses from transformers' continuous batching: a new one takes the place of one that is finished.

Every token is drawn as in the other transformers backend, from the stream of the item (cdpo/generate/sampling.py):
the same responses come out, up to the rounding of the logits.

transformers has no place for a sampler of one's own, and its manager is private for the most part. What this file
counts on, and its tests would find changed: a logits processor that derives from ContinuousBatchingLogitsProcessor is
told the requests whose next token is due, in the order of the rows of the logits that it then gets; and without
asynchronous batching and CUDA graphs it runs once for every token that is drawn, before the next are prepared.
"""

import math
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.utils import WorkloadHints

from cdpo.errors import StepError
from cdpo.generate.backend import Item, Sampled
from cdpo.generate.sampling import draw
from cdpo.memory import at_once

if TYPE_CHECKING:
    from cdpo.config.params import SamplingParams

#: tokens of one page of the cache: what flash attention asks for
PAGE = 256
#: tokens of one forward pass, at most: prompts that are longer are read in parts
PASS = 4096


class ContinuousBackend:
    """A model that answers up to `rows` prompts at once: a `cdpo.generate.backend.Backend`."""

    def __init__(self, model: Any, *, rows: int) -> None:
        # An adapter's layers lie inside the model that it wraps, and only that one has continuous batching.
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._rows = rows

    def generate(
        self,
        items: Sequence[Item],
        sampling: "SamplingParams",
        *,
        end_ids: Sequence[int],
        done: Container[int] = (),
    ) -> Iterator[tuple[int, Sampled]]:
        """See `Backend`. Raises OutOfMemory where the cache of `rows` responses does not fit."""
        asked = [at for at in range(len(items)) if at not in done]
        if not asked:
            return
        rows = min(self._rows, len(asked))
        prompt = max(len(items[at].prompt_ids) for at in asked)
        drawing = _Drawing(items, sampling, self._model.device)
        with at_once(self._rows):
            manager = self._manager(drawing, WorkloadHints(prompt, sampling.max_new_tokens, rows), end_ids)
            manager.start()
            left = set(asked)
            try:
                for at in asked:
                    manager.add_request(
                        items[at].prompt_ids,
                        request_id=str(at),
                        max_new_tokens=sampling.max_new_tokens,
                        eos_token_id=list(end_ids),
                    )
                while left:
                    output = manager.get_result(timeout=1.0)
                    if output is None or output.error is not None:
                        _raise_fatal(manager, output)
                        continue
                    at, ids = int(output.request_id), output.generated_tokens
                    left.remove(at)
                    yield at, Sampled(ids, "stop" if ids[-1] in end_ids else "length", drawing.of(at, ids))
            finally:
                manager.stop(hard_stop=bool(left))
                manager.destroy()

    def close(self) -> None:
        self._model = None

    def _manager(self, drawing: "_Drawing", most: WorkloadHints, end_ids: Sequence[int]) -> Any:
        """Not started yet; with room for `most.num_requests` responses of the longest kind at once."""
        pages = math.ceil((most.max_prompt_length + most.max_generated_length) / PAGE) + 1
        manager = self._model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=most.max_generated_length, eos_token_id=list(end_ids)
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=most.num_requests * pages,
                max_batch_tokens=max(PASS, most.num_requests),
                max_requests_per_batch=most.num_requests,
                use_async_batching=False,
                use_cuda_graph=False,
                # the attention that the step was asked for
                auto_switch_to_flash=False,
            ),
            workload_hints=most,
        )
        # In place of what the model's own generation config would have had done to the logits.
        manager.logit_processor = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([drawing]))
        manager.logit_processor.tensors_required = 1
        return manager


class _Drawing(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Draws each row's token and leaves the sampler nothing but to take it: every other token's score is -inf."""

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, items: Sequence[Item], sampling: "SamplingParams", device: torch.device) -> None:
        self._items, self._sampling, self._device = items, sampling, device
        #: of the tokens drawn so far, by position in `items`
        self._drawn: dict[int, list[int]] = {}
        self._logprobs: dict[int, list[float]] = {}
        #: the position in `items` of each row of the next logits
        self._rows: list[int] = []

    def of(self, at: int, token_ids: list[int]) -> list[float]:
        """The log-probabilities of the tokens of a response that is finished."""
        drawn, logprobs = self._drawn.pop(at), self._logprobs.pop(at)
        if drawn != token_ids:
            raise StepError(
                f"continuous batching answered prompt {at} with {token_ids}, where {drawn} were drawn: this "
                "transformers does not do what cdpo counts on; take `batching: static`"
            )
        return logprobs

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        self._rows = [int(request.state.request_id) for request in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)  # a place is kept for arguments; there are none

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """`scores`: the model's logits, float32 `[rows, vocabulary]`."""
        items = [self._items[at] for at in self._rows]
        heat = [self._sampling.temperature if item.temperature is None else item.temperature for item in items]
        positions = [len(self._drawn.get(at, ())) for at in self._rows]
        tokens = draw(
            scores,
            torch.tensor([item.seed for item in items], dtype=torch.int64, device=self._device),
            torch.tensor(positions, dtype=torch.int64, device=self._device),
            self._sampling,
            torch.tensor(heat, dtype=torch.float64, device=self._device),
        )
        likely = scores.gather(-1, tokens[:, None])[:, 0] - scores.logsumexp(dim=-1)
        for at, token, logprob in zip(self._rows, tokens.tolist(), likely.tolist(), strict=True):
            self._drawn.setdefault(at, []).append(token)
            self._logprobs.setdefault(at, []).append(logprob)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


def _raise_fatal(manager: Any, output: Any) -> None:
    """Raise what ended the manager's thread, or a request alone; nothing where it only has nothing to tell yet."""
    fatal = manager.background_thread_status.fatal_error
    if fatal is not None:
        raise fatal
    if output is not None:
        raise StepError(f"continuous batching did not answer prompt {output.request_id}: {output.error}")
    if not manager.is_running():
        raise StepError("continuous batching ended by itself, with responses to come")
