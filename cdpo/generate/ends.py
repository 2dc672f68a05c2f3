"""The tokens that end a response."""

from collections.abc import Sequence
from typing import Any

from cdpo.data.tokens import end_token_id
from cdpo.errors import StepError


def end_ids(tokenizer: Any, stop_tokens: Sequence[str] = ()) -> list[int]:
    """The chat template's end of a turn, EOS, and `stop_tokens`, as rising ids.

    Raises StepError for one of `stop_tokens` that is not a single token of the tokenizer's.
    """
    known = tokenizer.get_vocab()
    for token in stop_tokens:
        if token not in known:
            raise StepError(
                f"stop_tokens: {token!r} is no token of {tokenizer.name_or_path}: only whole tokens can end a response"
            )
    ids = {end_token_id(tokenizer), tokenizer.eos_token_id, *(known[token] for token in stop_tokens)} - {None}
    return sorted(ids)
