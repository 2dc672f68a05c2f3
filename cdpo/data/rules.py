"""Dataset rules: how one raw row of a source becomes a prompt, a chosen and a rejected response.

A rule is called with a row (column -> value) and returns {"prompt", "chosen", "rejected", extras...} in messages, or a
Drop with the cause why the row is of no use. Rows of prompts alone have None for both responses, rows to imitate have
no rejected one. A field of the wrong kind raises FieldError, which the reader of the
source turns into an error with file and row. Nothing here reads a file.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cdpo.data.messages import Message, Messages, assistant, problem, shown, text_problem, user
from cdpo.errors import StepError

Row = Mapping[str, Any]
Pair = dict[str, Any]

# causes of dropping that several rules share
IDENTICAL = "identical pair"
EMPTY_PROMPT = "empty prompt"
EMPTY_RESPONSE = "empty response"
PROMPTS_DIFFER = "chosen and rejected differ before the last response"
NO_USER_TURN = "prompt does not end in a user turn"
TIE = "tie"
NOT_FOUR = "not four completions"
NO_POST = "no Reddit post"
#: what is left out because the rule is about other rows, and not for a fault of the data
BY_CHOICE = (TIE, NOT_FOUR, NO_POST)

#: PKU-SafeRLHF's columns of whether each response is safe
SAFETY = ("is_response_0_safe", "is_response_1_safe")


@dataclass(frozen=True)
class Drop:
    """The row is well-formed, and no usable preference for this reason."""

    cause: str


class FieldError(StepError):
    """A column of a row is missing or holds something of the wrong kind."""


@dataclass(frozen=True)
class Rule:
    """A named way to read a source: the columns it reads, and what it makes of a row."""

    columns: tuple[str, ...]
    convert: Callable[[Row], Pair | Drop]
    #: columns that it reads where they are there
    optional: tuple[str, ...] = ()

    def __call__(self, row: Row) -> Pair | Drop:
        pair = self.convert(row)
        return pair if isinstance(pair, Drop) else checked(pair)


def checked(pair: Pair) -> Pair | Drop:
    """The pair with texts made messages and extras kept, or why it is of no use."""
    prompt = [user(pair["prompt"])] if isinstance(pair["prompt"], str) else pair["prompt"]
    chosen, rejected = (
        [assistant(pair[name])] if isinstance(pair[name], str) else pair[name] for name in ("chosen", "rejected")
    )
    texts = [each[0]["content"].strip() for each in (chosen, rejected) if each is not None]
    if not any(each["content"].strip() for each in prompt):
        return Drop(EMPTY_PROMPT)
    if prompt[-1]["role"] != "user":
        return Drop(NO_USER_TURN)
    if not all(texts):
        return Drop(EMPTY_RESPONSE)
    if len(texts) == 2 and texts[0] == texts[1]:
        return Drop(IDENTICAL)
    return {**pair, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def text(row: Row, name: str, within: str = "") -> str:
    """A column that must be a text."""
    _require(row, name, within)
    wrong = text_problem(row[name])
    if wrong:
        raise FieldError(f"{within}{name!r}: {wrong}")
    return str(row[name])


def number(row: Row, name: str, within: str = "") -> float:
    """A column that must be a finite number."""
    _require(row, name, within)
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(f"{within}{name!r}: expected a finite number, got {shown(value)}")
    return float(value)


def which(row: Row, name: str) -> int:
    """A column that must say 0 or 1."""
    _require(row, name)
    value = row[name]
    if isinstance(value, bool) or value not in (0, 1):
        raise FieldError(f"{name!r}: expected 0 or 1, got {shown(value)}")
    return int(value)


def truth(row: Row, name: str) -> bool:
    """A column that must say true or false."""
    _require(row, name)
    if not isinstance(row[name], bool):
        raise FieldError(f"{name!r}: expected true or false, got {shown(row[name])}")
    return bool(row[name])


def items(row: Row, name: str, kind: type, what: str) -> Any:
    """A column that must be a list (or an object, by `kind`)."""
    _require(row, name)
    if not isinstance(row[name], kind):
        raise FieldError(f"{name!r}: expected {what}, got {shown(row[name])}")
    return row[name]


def _require(row: Row, name: str, within: str = "") -> None:
    if name not in row:
        raise FieldError(f"{within}no {name!r}; there are: {', '.join(map(str, row)) or 'no columns'}")


def _preference(row: Row) -> Pair | Drop:
    """`prompt` (text or messages; or absent), `chosen` and `rejected`: texts, responses as one message, or whole
    conversations that share everything before the last message.
    """
    prompt = _conversation(row, "prompt") if row.get("prompt") is not None else None
    sides: list[Messages] = []
    prefixes: list[Messages] = []
    for name in ("chosen", "rejected"):
        turns = _conversation(row, name, role="assistant")
        if turns[-1]["role"] != "assistant":
            raise FieldError(f"{name!r}: the last message is the {turns[-1]['role']}'s and must be the assistant's")
        sides.append(turns[-1:])
        prefixes.append(turns[:-1])
    if prefixes[0] != prefixes[1]:
        return Drop(PROMPTS_DIFFER)
    shared = prefixes[0]
    if prompt is None and not shared:
        raise FieldError("no 'prompt', and 'chosen' and 'rejected' are no whole conversations that hold one")
    # a prompt beside whole conversations repeats them, or (as a text) their last turn
    if prompt is not None and shared and prompt not in (shared, shared[-1:]):
        return Drop("prompt differs from the conversations' own")
    return {"prompt": shared or prompt, "chosen": sides[0], "rejected": sides[1]}


def _demonstration(row: Row) -> Pair | Drop:
    """A response to imitate: `prompt` and `completion` (texts or messages), or a conversation in `messages`, whose last
    turn is the response.
    """
    if row.get("messages") is not None:
        turns = _conversation(row, "messages")
        if turns[-1]["role"] != "assistant":
            return Drop("conversation does not end in the assistant's turn")
        prompt, response = turns[:-1], turns[-1:]
        if not prompt:
            return Drop(EMPTY_PROMPT)
    else:
        prompt, response = _conversation(row, "prompt"), _conversation(row, "completion", role="assistant")
        if len(response) != 1 or response[0]["role"] != "assistant":
            raise FieldError("'completion': a text, or one message of the assistant in a list")
    return {"prompt": prompt, "chosen": response, "rejected": None}


def _prompt(row: Row) -> Pair | Drop:
    """A prompt alone, to be answered."""
    return {"prompt": _conversation(row, "prompt"), "chosen": None, "rejected": None}


def _conversation(row: Row, name: str, role: str = "user") -> Messages:
    """A text as one message of `role`, or messages, with nothing but role and content."""
    _require(row, name)
    value = row[name]
    if isinstance(value, list):
        wrong = problem(value)
        if wrong:
            raise FieldError(f"{name!r}: {wrong}")
        return [_bare(each) for each in value]
    return [{"role": role, "content": text(row, name)}]


def _bare(message: Mapping[str, Any]) -> Message:
    return {"role": message["role"], "content": message["content"]}


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh(row: Row) -> Pair | Drop:
    """Anthropic/hh-rlhf: `chosen` and `rejected` are dialogues "\\n\\nHuman: ...\\n\\nAssistant: ..." that differ in
    the last turn. Consecutive turns of one speaker in the prompt are joined: chat templates want speakers to alternate.
    """
    halves = []
    for name in ("chosen", "rejected"):
        dialogue = text(row, name)
        if not dialogue.startswith("\n\nHuman:"):
            raise FieldError(f"{name!r}: a dialogue begins with '\\n\\nHuman:', this one with {shown(dialogue[:20])}")
        turns = list(_HH_TURN.finditer(dialogue))
        if turns[-1][1] != "Assistant":
            return Drop("dialogue does not end in the assistant's turn")
        halves.append((dialogue[: turns[-1].start()], dialogue[turns[-1].end() :].strip()))
    (before, chosen), (other, rejected) = halves
    if before != other:
        return Drop(PROMPTS_DIFFER)
    return {"prompt": parse_dialogue(before), "chosen": chosen, "rejected": rejected}


def parse_dialogue(dialogue: str) -> Messages:
    """The turns of a "\\n\\nHuman: ...\\n\\nAssistant: ..." text as messages, white space around each cut off."""
    parts = _HH_TURN.split(dialogue)[1:]
    messages: Messages = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + said.strip()
        else:
            messages.append({"role": role, "content": said.strip()})
    return messages


def _safe_rlhf(label: str) -> Callable[[Row], Pair | Drop]:
    """PKU-SafeRLHF: two responses, the number of the better (or of the safer) one, and whether each is safe, which is
    kept as `chosen_is_safe` and `rejected_is_safe`.
    """

    def convert(row: Row) -> Pair:
        responses = text(row, "response_0"), text(row, "response_1")
        chosen = which(row, label)
        pair: Pair = {"prompt": text(row, "prompt"), "chosen": responses[chosen], "rejected": responses[1 - chosen]}
        if all(row.get(name) is not None for name in SAFETY):
            safe = [truth(row, name) for name in SAFETY]
            pair |= {"chosen_is_safe": safe[chosen], "rejected_is_safe": safe[1 - chosen]}
        return pair

    return convert


def _ultrafeedback(row: Row) -> Pair | Drop:
    """UltraFeedback: of exactly four completions the one with the highest overall_score against the lowest."""
    instruction = text(row, "instruction")
    completions = items(row, "completions", list, "a list of completions")
    if len(completions) != 4:
        return Drop(NOT_FOUR)
    scored = []
    for at, completion in enumerate(completions, start=1):
        within = f"'completions' {at}: "
        if not isinstance(completion, dict):
            raise FieldError(f"{within}expected an object, got {shown(completion)}")
        scored.append((number(completion, "overall_score", within), text(completion, "response", within)))
    scores = [score for score, _ in scored]
    if max(scores) == min(scores):
        return Drop(TIE)
    highest, lowest = scored[scores.index(max(scores))], scored[scores.index(min(scores))]
    return {
        "prompt": instruction,
        "chosen": highest[1],
        "rejected": lowest[1],
        "score_chosen": highest[0],
        "score_rejected": lowest[0],
    }


def _summarize(row: Row) -> Pair | Drop:
    """openai/summarize_from_feedback, comparisons: a Reddit post, two summaries and the choice."""
    info = items(row, "info", dict, "an object")
    if info.get("post") is None:
        return Drop(NO_POST)
    subreddit, title, post = (text(info, name, "'info': ") for name in ("subreddit", "title", "post"))
    summaries = items(row, "summaries", list, "a list of two summaries")
    if len(summaries) != 2 or not all(isinstance(each, dict) for each in summaries):
        raise FieldError(f"'summaries': expected a list of two objects, got {shown(summaries)}")
    texts = [text(each, "text", f"'summaries' {at}: ") for at, each in enumerate(summaries, start=1)]
    chosen = which(row, "choice")
    prompt = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    return {"prompt": prompt, "chosen": texts[chosen], "rejected": texts[1 - chosen]}


def _webgpt(row: Row) -> Pair | Drop:
    """openai/webgpt_comparisons: two answers with scores; equal scores are no preference."""
    question = row.get("question")
    asked = text(question, "full_text", "'question': ") if isinstance(question, dict) else text(row, "question")
    answers = text(row, "answer_0"), text(row, "answer_1")
    scores = number(row, "score_0"), number(row, "score_1")
    if scores[0] == scores[1]:
        return Drop(TIE)
    chosen = 0 if scores[0] > scores[1] else 1
    return {
        "prompt": asked,
        "chosen": answers[chosen],
        "rejected": answers[1 - chosen],
        "score_chosen": scores[chosen],
        "score_rejected": scores[1 - chosen],
    }


#: by the name that `rule:` takes
RULES: dict[str, Rule] = {
    "preference": Rule(("chosen", "rejected"), _preference, optional=("prompt",)),
    "sft": Rule((), _demonstration, optional=("prompt", "completion", "messages")),
    "prompts": Rule(("prompt",), _prompt),
    "AH": Rule(("chosen", "rejected"), _hh),
    "PP": Rule(("prompt", "response_0", "response_1", "better_response_id"), _safe_rlhf("better_response_id"), SAFETY),
    "PM": Rule(("prompt", "response_0", "response_1", "safer_response_id"), _safe_rlhf("safer_response_id"), SAFETY),
    "U": Rule(("instruction", "completions"), _ultrafeedback),
    "OS": Rule(("info", "summaries", "choice"), _summarize),
    "OW": Rule(("question", "answer_0", "answer_1", "score_0", "score_1"), _webgpt),
}

#: what the rows of a dataset can be used for: the responses that they have
FORMATS = {"preference": ("chosen", "rejected"), "sft": ("chosen",), "prompts": ()}


def detect(row: Row) -> str:
    """The rule for a source with such a first row: a format by TRL's conventions, or the one rule that reads just these
    columns. Raises FieldError where none fits, or more than one.
    """
    there = set(row)
    if {"chosen", "rejected"} <= there:
        return "AH" if str(row["chosen"]).startswith("\n\nHuman:") and row.get("prompt") is None else "preference"
    if "messages" in there or {"prompt", "completion"} <= there:
        return "sft"
    fitting = [
        name for name, rule in RULES.items() if name not in FORMATS and rule.columns and {*rule.columns} <= there
    ]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(map(repr, row)) or "none"
    if fitting:
        raise FieldError(
            f"its columns ({listed}) fit several rules: write `rule: {fitting[0]}` or `rule: {fitting[1]}`"
        )
    if "prompt" in there:
        return "prompts"
    raise FieldError(
        f"its columns ({listed}) are those of no format that is known by sight: chosen and rejected (with prompt or "
        "without), prompt and completion, messages, or prompt alone. Name them by `columns:`, or write a rule of "
        "your own (`rule: ./my.py:rule`)"
    )
