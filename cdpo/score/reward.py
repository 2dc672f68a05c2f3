"""Rewards of (prompt, response) pairs by a sequence-classification model with one output, or by a user's function."""

import math
from collections.abc import Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cdpo.data.tokens import ControlTokenError, encode
from cdpo.errors import StepError
from cdpo.generate.transformers_backend import length_batches
from cdpo.plugins import said

if TYPE_CHECKING:
    from cdpo.data.messages import Messages

#: a prompt (messages up to the last user turn) and one response to it
Pair = tuple["Messages", str]


def encode_pairs(tokenizer: Any, pairs: Sequence[Pair]) -> list[list[int] | None]:
    """Token ids of prompt and response together, under the reward model's own tokenizer and template.

    None for a response whose text spells the token that ends a turn.
    """
    return [_encoded(tokenizer, pair) for pair in pairs]


def _encoded(tokenizer: Any, pair: Pair) -> list[int] | None:
    try:
        each = encode(tokenizer, *pair)
    except ControlTokenError:
        return None
    return [*each.prompt_ids, *each.response_ids]


def score(
    model: Any, sequences: Sequence[Sequence[int]], *, pad_id: int, batch_size: int, done: Container[int] = ()
) -> Iterator[tuple[int, float]]:
    """(position, reward) of each of `sequences`, a batch at a time, batches of similar length.

    A reward does not depend on the batch size beyond rounding (1e-5 in fp32). Positions in `done` are passed over, by
    whole batches, as in `cdpo.generate.transformers_backend.generate`. Raises `StepError` for a reward that is no
    finite number.
    """
    model.eval()
    for batch in length_batches([len(ids) for ids in sequences], batch_size):
        if all(at in done for at in batch):
            continue
        width = len(sequences[batch[0]])
        # Right padding: the model takes its output at the last token that is not padding.
        fed = [[*sequences[at], *[pad_id] * (width - len(sequences[at]))] for at in batch]
        mask = [[1] * len(sequences[at]) + [0] * (width - len(sequences[at])) for at in batch]
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor(fed, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
            )
        for at, reward in zip(batch, output.logits[:, 0].float().tolist(), strict=True):
            if not math.isfinite(reward):
                raise StepError(f"the reward of text {at} ({len(sequences[at])} tokens) is {reward}; try dtype: fp32")
            yield at, reward


def score_by_plugin(
    function: Callable[..., Any], name: str, pairs: Sequence[Pair], *, batch_size: int, done: Container[int] = ()
) -> Iterator[tuple[int, float]]:
    """(position, reward) by a user's `fn(prompts, responses) -> list[float]`, called for `batch_size` pairs at a time.

    Each reward must depend on its own prompt and response alone. Raises `StepError` where the function fails, gives
    another number of values than it was given pairs, or a value that is no finite number.
    """
    for start in range(0, len(pairs), batch_size):
        batch = range(start, min(start + batch_size, len(pairs)))
        if all(at in done for at in batch):
            continue
        try:
            rewards = list(function([pairs[at][0] for at in batch], [pairs[at][1] for at in batch]))
        except (Exception, SystemExit) as error:
            raise StepError(f"the reward function {name} failed: {said(error, name)}") from error
        if len(rewards) != len(batch):
            raise StepError(f"the reward function {name} gave {len(rewards)} rewards for {len(batch)} responses")
        for at, given in zip(batch, rewards, strict=True):
            try:
                reward = float(given)
            except (TypeError, ValueError):
                raise StepError(f"the reward function {name} gave {given!r} in place of a number") from None
            if not math.isfinite(reward):
                raise StepError(f"the reward function {name} gave {reward} for the response {pairs[at][1]!r:.80}")
            yield at, reward
