"""What every backend is asked and what it answers; `cdpo/generate/backends.py` says which there are."""

from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from cdpo.config.params import SamplingParams
    from cdpo.data.messages import Messages


class Item(NamedTuple):
    """A prompt to answer, the seed in [0, 2**63) of its random stream, and a temperature if it has one of its own.

    `messages` are what `prompt_ids` were made from: for servers that write the template themselves. `name`: what it is
    called where it has to be told of; its position where it has none.
    """

    prompt_ids: list[int]
    seed: int
    temperature: float | None = None
    messages: "Messages | None" = None
    name: str | None = None


class Sampled(NamedTuple):
    """A response: exactly the tokens that were drawn, which end in an end token if and only if `finish_reason` is
    `stop`; or its text, where a server tells no token ids.

    `logprobs`: of each token under the model itself, in nats, before temperature, top-k and top-p; None where the
    backend has none.
    """

    token_ids: list[int] | None
    finish_reason: Literal["stop", "length"]
    logprobs: list[float] | None = None
    text: str | None = None


class Backend(Protocol):
    """Something that answers prompts."""

    def generate(
        self,
        items: Sequence[Item],
        sampling: "SamplingParams",
        *,
        end_ids: Sequence[int],
        done: Container[int] = (),
    ) -> Iterator[tuple[int, Sampled]]:
        """(position in `items`, response) as responses are finished, in no particular order.

        A response ends with the first of `end_ids` that is drawn, or after `sampling.max_new_tokens` tokens. `done`
        holds positions that are known already; they may come once more. Raises StepError where a position cannot be
        answered, naming it.
        """

    def close(self) -> None:
        """Let go of what it holds: memory, processes, connections. Nothing is asked of it afterwards."""
