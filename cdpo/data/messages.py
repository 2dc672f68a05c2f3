"""Chat messages as plain data: `{"role": "user", "content": "..."}`, and the identity of a prompt."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, str]
Messages = list[Message]

#: made once: json.dumps makes one for each call with other than its defaults
_ENCODER = json.JSONEncoder(ensure_ascii=False)

ROLES = ("system", "user", "assistant")


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def canonical(messages: Sequence[Message]) -> str:
    """One text for equal messages: JSON of (role, content) pairs, whatever the order of their keys."""
    return _ENCODER.encode([[each["role"], each["content"]] for each in messages])


def prompt_id(prompt: Sequence[Message]) -> str:
    """The first 16 hex digits of the sha256 of the canonical prompt."""
    return hashlib.sha256(canonical(prompt).encode()).hexdigest()[:16]


def problem(value: Any, last: str | None = None) -> str | None:
    """Why `value` is not a conversation (that ends in the role `last`), or None where it is one."""
    if not isinstance(value, list) or not value:
        return f"expected a non-empty list of messages, got {shown(value)}"
    for index, message in enumerate(value, start=1):
        if not isinstance(message, dict):
            return f"message {index} is {shown(message)}, not an object with role and content"
        if message.get("role") not in ROLES:
            return f"message {index} has the role {shown(message.get('role'))}; roles are {', '.join(ROLES)}"
        text = text_problem(message.get("content"))
        if text:
            return f"message {index}: content: {text}"
    if last is not None and value[-1]["role"] != last:
        return f"the last message is the {value[-1]['role']}'s and must be the {last}'s"
    return None


def text_problem(value: Any) -> str | None:
    """Why `value` is not a text, or None where it is one (an empty one too)."""
    if not isinstance(value, str):
        return "is null" if value is None else f"expected a text, got {shown(value)}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"holds half of a surrogate pair at character {error.start + 1}, which is no Unicode text"
    return None


def shown(value: Any) -> str:
    """A value as an error message shows it: its JSON, at most 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
