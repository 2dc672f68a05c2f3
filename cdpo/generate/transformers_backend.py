"""Responses from a transformers model: batches of similar length, a key-value cache, one random stream per item.

What comes out does not depend on the batch size up to the rounding of the logits: in fp32 two batch sizes differ by
about 1e-6, and a token could change only where its two best candidates are closer than that. In bf16 and fp16 the
rounding is a thousand times coarser and single responses do change with the batch size.
"""

import inspect
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cdpo.generate.backend import Item, Sampled
from cdpo.generate.sampling import draw
from cdpo.memory import at_once

if TYPE_CHECKING:
    from cdpo.config.params import SamplingParams

#: finished rows leave the batch when no more than this share of it is still being written
COMPACT_AT = 0.75


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions in batches of similar length, the longest first, so that too little memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda at: (-lengths[at], at))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def generate(
    model: Any,
    items: Sequence[Item],
    sampling: "SamplingParams",
    *,
    end_ids: Sequence[int],
    pad_id: int,
    batch_size: int,
    done: Container[int] = (),
) -> Iterator[tuple[int, Sampled]]:
    """Answer `items`; gives (position in `items`, response) as rows finish, in no particular order.

    `done` holds positions that are known already: a batch in which all are known is passed over, any other is run whole
    (and gives the known ones again), so that a run that goes on computes on the very same batches as one that was never
    interrupted. The model is in eval mode while this runs, and is left as it was found.
    """
    training = model.training
    model.eval()
    try:
        for batch in length_batches([len(item.prompt_ids) for item in items], batch_size):
            if not all(at in done for at in batch):
                for place, sampled in _answer(model, [items[at] for at in batch], sampling, set(end_ids), pad_id):
                    yield batch[place], sampled
    finally:
        model.train(training)


class TransformersBackend:
    """`generate` with the model, the pad token and the batch size of one step: a `cdpo.generate.backend.Backend`."""

    def __init__(self, model: Any, *, pad_id: int, batch_size: int) -> None:
        self._model, self._pad_id, self._batch_size = model, pad_id, batch_size

    def generate(
        self,
        items: Sequence[Item],
        sampling: "SamplingParams",
        *,
        end_ids: Sequence[int],
        done: Container[int] = (),
    ) -> Iterator[tuple[int, Sampled]]:
        size = self._batch_size
        with at_once(size):
            yield from generate(
                self._model, items, sampling, end_ids=end_ids, pad_id=self._pad_id, batch_size=size, done=done
            )

    def close(self) -> None:
        self._model = None


def _answer(
    model: Any, items: Sequence[Item], sampling: "SamplingParams", end_ids: set[int], pad_id: int
) -> Iterator[tuple[int, Sampled]]:
    device = model.device
    lengths = [len(item.prompt_ids) for item in items]
    width = max(lengths)
    # Left padding: the last column holds every row's newest token.
    fed = torch.tensor([[pad_id] * (width - len(item.prompt_ids)) + item.prompt_ids for item in items], device=device)
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths], device=device)
    padded = min(lengths) < width
    positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
    seeds = torch.tensor([item.seed for item in items], dtype=torch.int64, device=device)
    heat = [sampling.temperature if item.temperature is None else item.temperature for item in items]
    temperatures = torch.tensor(heat, dtype=torch.float64, device=device)
    rows = list(range(len(items)))  # which item each row of the batch is
    drawn: list[list[int]] = [[] for _ in items]
    logprobs: list[list[float]] = [[] for _ in items]
    live = set(rows)
    cache = None
    takes = _arguments(model)
    for position in range(sampling.max_new_tokens):
        extra: dict[str, Any] = {}
        if "position_ids" in takes:
            extra["position_ids"] = positions
        if "logits_to_keep" in takes:
            extra["logits_to_keep"] = 1  # not the logits of the whole prompt over the whole vocabulary
        with torch.no_grad():
            output = model(
                input_ids=fed,
                attention_mask=mask if padded else None,
                past_key_values=cache,
                use_cache=True,
                **extra,
            )
            at = torch.full_like(seeds, position)
            logits = output.logits[:, -1].float()
            tokens = draw(logits, seeds, at, sampling, temperatures)
            likely = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        cache = output.past_key_values
        for row, token, logprob in zip(rows, tokens.tolist(), likely.tolist(), strict=True):
            if row not in live:
                continue
            drawn[row].append(token)
            logprobs[row].append(logprob)
            if token in end_ids:
                live.remove(row)
                yield row, Sampled(drawn[row], "stop", logprobs[row])
        if not live:
            return
        fed, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
        if len(live) <= COMPACT_AT * len(rows):
            kept = [place for place, row in enumerate(rows) if row in live]
            chosen = torch.tensor(kept, device=device)
            cache.batch_select_indices(chosen)
            fed, positions, mask = fed[chosen], positions[chosen], mask[chosen]
            seeds, temperatures = seeds[chosen], temperatures[chosen]
            rows = [rows[place] for place in kept]
    for row in sorted(live):
        yield row, Sampled(drawn[row], "length", logprobs[row])


def _arguments(model: Any) -> Container[str]:
    """What the model's forward takes; an adapter's wrapper takes everything and hides it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(base.forward).parameters
