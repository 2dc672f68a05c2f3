"""The one tokenisation: training, sampling and scoring see the same ids for the same prompt and response.

The prompt's text is the chat template with the assistant's turn opened, the response's what the template then adds,
cut after the token that ends the turn. Each is tokenised by itself, without further special tokens (BOS is in the
template where there is one), so that what is trained on is exactly what sampling continues. Nothing is truncated.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from cdpo.data.messages import Message, Messages, assistant, user
from cdpo.errors import StepError

#: a response that no template contains, to see what follows it
_PROBE = "qzxprobe"

#: of the assistant: one message, or its text
Response = Sequence[Message] | str


class Encoded(NamedTuple):
    prompt_ids: list[int]
    #: ends in exactly one end-of-turn token, and holds no other
    response_ids: list[int]


class EncodedRow(NamedTuple):
    prompt_ids: list[int]
    #: of every response, in their order; each as in Encoded
    response_ids: list[list[int]]


class ControlTokenError(StepError):
    """A response's own text spells a special token (of the end of a turn, say): the row is unusable for this model."""


class _Closing(NamedTuple):
    """How a template closes the assistant's turn."""

    #: everything that follows the response's text
    text: str
    end_id: int
    #: the part of `text` up to the end token, or None where the template writes none
    up_to_end: str | None
    #: special tokens that the template itself puts into a response, the end token not counted
    specials: int


_closings: WeakKeyDictionary[Any, tuple[str, _Closing]] = WeakKeyDictionary()


def encode(tokenizer: Any, prompt: Sequence[Message], response: Response) -> Encoded:
    """Token ids of a prompt and of one assistant turn that answers it; `prompt_ids + response_ids` is a training row.

    Raises ControlTokenError where the response's text spells a special token, StepError where the model's
    template does not write a conversation as its opened prompt followed by the response.
    """
    (row,) = encode_rows(tokenizer, [(prompt, [response])])
    if row is None:
        raise ControlTokenError(f"a response spells a special token of {_name(tokenizer)}")
    return Encoded(row.prompt_ids, row.response_ids[0])


def encode_rows(
    tokenizer: Any, rows: Sequence[tuple[Sequence[Message], Sequence[Response]]]
) -> list[EncodedRow | None]:
    """Prompts and the responses of each, as `encode` encodes them; None for a row with a response that spells a special
    token. Sooner than one by one: a prompt is rendered once, and all texts are tokenised together."""
    texts: list[str] = []
    for prompt, responses in rows:
        opened = _text(tokenizer, prompt, opened=True)
        texts += [opened, *(_response_text(tokenizer, opened, prompt, response) for response in responses)]
    ids = iter(_ids(tokenizer, texts))
    return [_encoded(tokenizer, next(ids), [next(ids) for _ in responses]) for _, responses in rows]


def _response_text(tokenizer: Any, opened: str, prompt: Sequence[Message], response: Response) -> str:
    """What the template writes after the opened prompt, up to the end token where it writes one."""
    turn = [assistant(response)] if isinstance(response, str) else list(response)
    if len(turn) != 1 or turn[0]["role"] != "assistant":
        raise ValueError("a response is one message of the assistant")
    closing = _closing(tokenizer)
    whole = _text(tokenizer, [*prompt, *turn], opened=False)
    if not whole.startswith(opened) or not whole.endswith(closing.text):
        raise StepError(
            f"the chat template of {_name(tokenizer)} does not write a conversation as the prompt followed by the "
            "response; choose one of cdpo's with `template: plain` or `template: inst`"
        )
    return whole[len(opened) : len(whole) - len(closing.text)] + (closing.up_to_end or "")


def _encoded(tokenizer: Any, prompt_ids: list[int], responses: Sequence[list[int]]) -> EncodedRow | None:
    """None where a response holds the end token before its end, or a special token that is not the template's own."""
    for ids in responses:
        closing = _closing(tokenizer)
        if closing.up_to_end is None:
            ids.append(closing.end_id)
        if ids.index(closing.end_id) != len(ids) - 1 or _specials(tokenizer, ids[:-1]) > closing.specials:
            return None
    return EncodedRow(prompt_ids, list(responses))


def encode_prompt(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
    """Token ids of the prompt with the assistant's turn opened: what a response is sampled after."""
    (row,) = encode_rows(tokenizer, [(prompt, [])])
    assert row is not None
    return row.prompt_ids


def end_token_id(tokenizer: Any) -> int:
    """The token that ends the assistant's turn: the template's own where it writes one, else EOS."""
    return _closing(tokenizer).end_id


def decode_response(tokenizer: Any, response_ids: Sequence[int]) -> str:
    """The text of a response from its ids, up to the end token: no special tokens, no white space around it."""
    end = end_token_id(tokenizer)
    ids = list(response_ids)
    kept = ids[: ids.index(end)] if end in ids else ids
    text: str = tokenizer.decode(kept, skip_special_tokens=True)
    return text.strip()


def _closing(tokenizer: Any) -> _Closing:
    template = str(tokenizer.chat_template)
    known = _closings.get(tokenizer)
    if known is None or known[0] != template:
        known = (template, _find_closing(tokenizer))
        _closings[tokenizer] = known
    return known[1]


def _find_closing(tokenizer: Any) -> _Closing:
    probe: Messages = [user("a"), assistant(_PROBE)]
    text = _text(tokenizer, probe, opened=False)
    if _PROBE not in text:
        raise StepError(f"the chat template of {_name(tokenizer)} leaves out the assistant's text")
    tail = text[text.rindex(_PROBE) + len(_PROBE) :]
    opened = _text(tokenizer, probe[:1], opened=True)
    (within,) = _ids(tokenizer, [text[len(opened) : len(text) - len(tail)]])
    own = _specials(tokenizer, within)
    special = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    at, token = min(((tail.find(token), token) for token in special if token in tail), default=(0, None))
    if token is not None:
        # of tokens that begin at the same place, the tokenizer takes the longest
        token = max((each for each in special if tail.startswith(each, at)), key=len)
        return _Closing(tail, special[token], tail[: at + len(token)], own)
    if tokenizer.eos_token_id is None:
        raise StepError(f"{_name(tokenizer)} has no EOS token and its template ends no turn: a response could not end")
    return _Closing(tail, tokenizer.eos_token_id, None, own)


def _text(tokenizer: Any, messages: Sequence[Message], opened: bool) -> str:
    if not tokenizer.chat_template:
        raise StepError(f"{_name(tokenizer)} has no chat template; choose one of cdpo's with `template: plain`")
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opened)
    except Exception as error:  # a template refuses a conversation by raising whatever it likes
        raise StepError(f"the chat template of {_name(tokenizer)} refuses this conversation: {error}") from error
    return text


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    # verbose: it would warn of rows longer than the model's context, which are counted and named elsewhere
    found = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return list(found.input_ids)


def _specials(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many of `ids` are special; an unknown word is not."""
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    return 0 if special.isdisjoint(ids) else sum(each in special for each in ids)


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or "this tokenizer"
