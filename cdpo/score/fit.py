"""Does a text fit the model: its context and its vocabulary. What does not is refused or counted, never cut."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cdpo.errors import StepError

if TYPE_CHECKING:
    from cdpo.step import Step


def context_length(config: Any, tokenizer: Any) -> int:
    """The most tokens that a model can read at once, by its configuration and its tokenizer, whichever is less."""
    # A tokenizer without a limit says 1e30; a model with relative positions says nothing.
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length]
    return int(min(limit for limit in limits if limit is not None))


def refuse_unknown_tokens(size: int, sequences: Iterable[Sequence[int]], what: str) -> None:
    """Raise `StepError` where a token id has no row in the model's embedding table, which has `size` of them."""
    largest = max((max(ids) for ids in sequences if ids), default=0)
    if largest >= size:
        raise StepError(
            f"{what} knows {size} tokens, and its tokenizer gives the token id {largest}: "
            "model and tokenizer do not belong together"
        )


def report_dropped(step: "Step", *, dropped: int, total: int, allowed: float, what: str, advice: str) -> None:
    """Count what is left out; raise `StepError` where it is more than `allowed` of `total`, or all of it."""
    if not dropped:
        return
    counted = f"{dropped} of {total} {what}"
    if dropped > allowed * total or dropped == total:
        raise StepError(f"{counted}; max_dropped allows {allowed:.0%}: {advice}")
    step.note(f"left out and counted: {counted}")
