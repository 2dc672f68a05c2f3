"""Responses from a server that speaks OpenAI's API: vLLM's, `transformers serve`, OpenAI's own, and their like.

They agree on little more than the routes, so what they are sent depends on which one it is:

    vllm           prompts as token ids; tells token ids and log-probabilities; one random stream per request
    transformers   prompts as text, which is sent only where the server's tokenizer makes the same ids of it; tells
                   neither, and has one random stream for all requests, so they are sent one at a time
    openai         prompts as token ids (`completions`) or messages (`chat`); tells log-probabilities, and no token ids

Every answer is held against its question: a server that read more or fewer prompt tokens than there are ends the step,
and so does one that ends a response elsewhere than it was told to.
"""

import functools
import json
from collections.abc import Awaitable, Callable, Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import openai

from cdpo.errors import StepError
from cdpo.generate.backend import Item, Sampled
from cdpo.generate.endpoint import Endpoint, NoAnswer
from cdpo.generate.vllm_backend import sampling_of

if TYPE_CHECKING:
    from cdpo.config.params import SamplingParams

Server = Literal["vllm", "transformers", "openai"]


class OpenAIBackend:
    """A `cdpo.generate.backend.Backend` over an Endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Any,
        *,
        server: Server = "openai",
        route: Literal["completions", "chat"] = "completions",
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`tokenizer` is the policy's, as the prompts were encoded with it."""
        self._endpoint, self._tokenizer, self._note = endpoint, tokenizer, note
        self._server, self._route = server, route
        self._told = False

    def generate(
        self,
        items: Sequence[Item],
        sampling: "SamplingParams",
        *,
        end_ids: Sequence[int],
        done: Container[int] = (),
    ) -> Iterator[tuple[int, Sampled]]:
        if sampling.top_k and self._server == "openai":
            raise StepError("top_k is no parameter of OpenAI's API: leave it out, or name a server that has it")
        asked = [at for at in range(len(items)) if at not in done]
        calls = [self._call(items[at], sampling, end_ids) for at in asked]

        def name(place: int) -> str:
            return items[asked[place]].name or f"prompt {asked[place] + 1} of {len(items)}"

        for place, answer in self._endpoint.ask(calls, name):
            at = asked[place]
            yield at, self._read(answer, items[at], sampling, end_ids)

    def close(self) -> None:
        self._endpoint.close()

    # -- what is asked --------------------------------------------------------------------------------------------

    def _call(
        self, item: Item, sampling: "SamplingParams", end_ids: Sequence[int]
    ) -> Callable[[openai.AsyncOpenAI, str], Awaitable[Any]]:
        options = self._options(item, sampling, end_ids)
        if self._route == "chat":
            messages = [dict(message) for message in item.messages or []]
            return functools.partial(_chat, messages=messages, options=options)
        prompt = self._text(item) if self._server == "transformers" else item.prompt_ids
        return functools.partial(_complete, prompt=prompt, options=options)

    def _options(self, item: Item, sampling: "SamplingParams", end_ids: Sequence[int]) -> dict[str, Any]:
        """The body of a request, without prompt and model."""
        temperature = sampling.temperature if item.temperature is None else item.temperature
        if self._server == "transformers":
            drawn = {"temperature": temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
            settings = {
                "do_sample": sampling.do_sample,
                "max_new_tokens": sampling.max_new_tokens,
                "eos_token_id": list(end_ids),
                "pad_token_id": self._tokenizer.pad_token_id,
                **(drawn if sampling.do_sample else {}),
            }
            return {"generation_config": json.dumps(settings), "seed": item.seed}
        chat = self._route == "chat"
        if self._server == "vllm":
            # The penalties are vLLM's defaults, written out because a model's generation_config.json would otherwise
            # stand in for them.
            return sampling_of(item, sampling, end_ids) | {
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "logprobs": True if chat else 0,
                "return_token_ids": True,
            }
        options: dict[str, Any] = {
            "max_completion_tokens" if chat else "max_tokens": sampling.max_new_tokens,
            "temperature": temperature if sampling.do_sample else 0.0,
            "top_p": sampling.top_p,
            "seed": item.seed,
            "logprobs": True if chat else 0,
        }
        own = {self._tokenizer.eos_token_id}
        stop = [self._tokenizer.decode([token]) for token in end_ids if token not in own]
        return options | ({"stop": stop} if stop else {})

    def _text(self, item: Item) -> str:
        """The text of which the server's tokenizer makes just the prompt's ids. Raises StepError where none does."""
        tokenizer = self._tokenizer
        text: str = tokenizer.decode(item.prompt_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for each in (text, text.removeprefix(tokenizer.bos_token or "")):
            if list(tokenizer(each, verbose=False).input_ids) == item.prompt_ids:
                return each
        raise StepError(
            f"`transformers serve` takes prompts as text, and no text gives the {len(item.prompt_ids)} tokens of "
            f"{text[:80]!r}...: name another backend"
        )

    # -- what is answered -----------------------------------------------------------------------------------------

    def _read(self, answer: "_Answer", item: Item, sampling: "SamplingParams", end_ids: Sequence[int]) -> Sampled:
        if answer.prompt_tokens is not None and answer.prompt_tokens != len(item.prompt_ids):
            said = f"the server read {answer.prompt_tokens} tokens where the prompt has {len(item.prompt_ids)}"
            if self._route == "completions":
                raise StepError(f"{said}: it has another tokenizer, or adds tokens of its own")
            if not self._told:
                self._told = True
                self._note(f"{said}: its chat template is not the one that cdpo trains with")
        ended = answer.ended(end_ids)
        _refuse_other_end(answer, ended, sampling.max_new_tokens, end_ids)
        if answer.token_ids is not None:
            return Sampled(answer.token_ids, "stop" if ended else "length", answer.logprobs)
        return Sampled(None, answer.finish_reason, answer.logprobs, answer.text)


class _Answer:
    """One choice of a completion. Raises NoAnswer for what is none."""

    def __init__(self, completion: Any, text: str | None, logprobs: list[float] | None) -> None:
        (choice,) = completion.choices
        if choice.finish_reason not in ("stop", "length"):
            raise NoAnswer(f"finish_reason is {choice.finish_reason!r}")
        # half of a character, where a server cut one through, is nothing that can be tokenised or written down
        self.text = (text or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        self.finish_reason: Literal["stop", "length"] = choice.finish_reason
        self.logprobs = logprobs
        self.token_ids: list[int] | None = getattr(choice, "token_ids", None)
        self.prompt_tokens: int | None = completion.usage.prompt_tokens if completion.usage else None
        self.tokens: int | None = completion.usage.completion_tokens if completion.usage else None
        if self.token_ids is not None:
            self.tokens = len(self.token_ids)
        if self.token_ids is not None and logprobs is not None and len(logprobs) != len(self.token_ids):
            raise NoAnswer(f"{len(logprobs)} log-probabilities of {len(self.token_ids)} tokens")

    def ended(self, end_ids: Sequence[int]) -> bool:
        """Whether an end token ended it; the server's word for it where it tells no token ids."""
        if self.token_ids is None:
            return self.finish_reason == "stop"
        return bool(self.token_ids) and self.token_ids[-1] in end_ids


def _refuse_other_end(answer: _Answer, ended: bool, most: int, end_ids: Sequence[int]) -> None:
    """Raise StepError for a response that goes on after an end token, or is neither ended by one nor by its length.

    Servers cut a response off without a word where their own context is full (vLLM with a small --max-model-len).
    """
    if answer.tokens is not None and (answer.tokens > most or (answer.tokens < most and not ended)):
        raise StepError(
            f"the server ended a response with {answer.finish_reason!r} after {answer.tokens} tokens, where "
            f"max_new_tokens is {most}: its context is too small, or it does not heed what ends a response"
        )
    if any(token in end_ids for token in (answer.token_ids or ())[:-1]):
        raise StepError("the server went on after an end token: it does not heed `stop_token_ids`")


async def _complete(client: openai.AsyncOpenAI, model: str, *, prompt: Any, options: dict[str, Any]) -> _Answer:
    found = _checked(await client.completions.create(model=model, prompt=prompt, extra_body=options))
    choice = found.choices[0]
    logprobs = choice.logprobs.token_logprobs if choice.logprobs else None
    return _Answer(found, choice.text, logprobs)


async def _chat(client: openai.AsyncOpenAI, model: str, *, messages: Any, options: dict[str, Any]) -> _Answer:
    found = _checked(await client.chat.completions.create(model=model, messages=messages, extra_body=options))
    choice = found.choices[0]
    tokens = choice.logprobs.content if choice.logprobs else None
    return _Answer(found, choice.message.content, None if tokens is None else [each.logprob for each in tokens])


def _checked(completion: Any) -> Any:
    """What the client made of an answer, which it does not check itself."""
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or len(choices) != 1:
        raise NoAnswer(f"{str(completion)[:200]!r}")
    return completion
