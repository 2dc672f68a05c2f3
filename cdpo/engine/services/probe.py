"""Asks a server whether it answers, and what it serves. Nothing but the standard library."""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from cdpo.servers import on_this_machine

#: seconds that an answer may take
PATIENCE = 5.0
#: bytes of an answer that are read
MOST = 1 << 20
#: answers of servers that have no such address
ABSENT = (404, 405, 501)


class Unfit(Exception):
    """The server answers, and not as it must; waiting helps nothing. The message says why."""


def get(url: str, api_key: str | None) -> tuple[int, bytes]:
    """Status and body of what `url` answers; `api_key` names a variable. Raises OSError where nothing answers."""
    request = urllib.request.Request(url)
    secret = os.environ.get(api_key) if api_key is not None else None
    if secret:
        request.add_header("Authorization", f"Bearer {secret}")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if on_this_machine(url) else []))
    try:
        with opener.open(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read(MOST)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(MOST)
    except http.client.HTTPException as error:
        raise ConnectionError(f"{url}: no HTTP ({error!r})") from None


def is_well(root: str, api_key: str | None) -> bool:
    """Whether the server at `root` (without /v1) says that it is well, or answers and has nothing to say to that."""
    try:
        status, _ = get(f"{root}/health", api_key)
    except OSError:
        return False
    return status < 500 or status in ABSENT


def listed(url: str, api_key: str | None) -> list[str] | None:
    """The models that the server at `url` (with /v1) lists; None where it lists none, or not yet.

    Raises Unfit where it wants another key, OSError where nothing answers.
    """
    status, body = get(f"{url}/models", api_key)
    if status in (401, 403):
        key = f"the key in {api_key}" if api_key else "requests without a key: name its variable (`api_key:`)"
        raise Unfit(f"{url} refuses {key} (HTTP {status})")
    if status in ABSENT:
        return []
    if status != 200:
        return None
    try:
        found: Any = json.loads(body)
        return [str(each["id"]) for each in found["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def choose(models: Sequence[str], names: Sequence[str], url: str) -> str:
    """By which of `names`, the best first, the server calls its model; the only one that it lists has any name.

    Raises Unfit.
    """
    for name in names:
        if name in models or not models:
            return name
    if len(models) == 1:
        return models[0]
    wanted = f", and not {' or '.join(names)}" if names else ": `model:` says which one is meant"
    raise Unfit(f"{url} lists {', '.join(models) or 'no model'}{wanted}")
