"""One server of OpenAI's API that answers for a judge: a question, what came back, and what that means.

A request that fails says whether it may pass: the `question` is refused for good, the `endpoint` is of no use at all,
or it is to be sent again, after as long as the server asked for.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx2

from cdpo import retry_after
from cdpo.config.canonical import digest
from cdpo.judge.answers import Answer, Question
from cdpo.judge.limiter import Limiter
from cdpo.judge.reckoning import reckoned_tokens
from cdpo.servers import may_pass, on_this_machine

#: connections of one client, whose pool looks at each of them for every request
PER_CLIENT = 16
#: what newer models of OpenAI's call max_tokens, which they refuse
NEWER_LIMIT = "max_completion_tokens"
#: of an error 429 that no waiting mends
EMPTY_ACCOUNT = "insufficient_quota"


class Asking(NamedTuple):
    """How all questions are asked: temperature, top_p and max_tokens; log-probabilities of how many first tokens; and
    what decides an answer beside the question, JSON."""

    sampling: Mapping[str, Any]
    top_logprobs: int | None
    identity: Any


class Endpoint:
    """One server, with its limits."""

    def __init__(self, judge: str, given: Mapping[str, Any], timeout: float, asking: Asking) -> None:
        """`given` is what devices.yaml says of it (JudgeEndpoint); a request gets `timeout` seconds."""
        self.url, self.model, self.asking = given["url"], given["model"] or judge, asking
        self.limiter = Limiter(given["requests_per_minute"], given["tokens_per_minute"])
        self.tokens_per_minute, self.concurrency = given["tokens_per_minute"], given["concurrency"]
        #: why nothing more is asked here
        self.out: str | None = None
        #: failures one after the other
        self.failures = 0
        #: what its server calls max_tokens
        self.limit = "max_tokens"
        self.turn = asyncio.Lock()
        self.timeout, self._given = timeout, given
        self.place = self._place()
        # not OpenAI's own client, which takes more time for a request than all else here
        self.clients = [self._client() for _ in range(-(-self.concurrency // PER_CLIENT))]

    def _client(self) -> httpx2.AsyncClient:
        key = os.environ.get(self._given["api_key"] or "", "none")
        azure = self._given["api"] == "azure"
        headers = {"api-key": key} if azure else {"authorization": f"Bearer {key}"}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        return httpx2.AsyncClient(
            headers=headers, timeout=self.timeout, trust_env=not on_this_machine(self.url), limits=limits
        )

    def _place(self) -> str:
        """Where chat completions are asked for."""
        if self._given["api"] != "azure":
            return f"{self.url.rstrip('/')}/chat/completions"
        version = self._given["api_version"]
        return f"{self.url.rstrip('/')}/openai/deployments/{self.model}/chat/completions?api-version={version}"

    def allows(self, tokens: int) -> bool:
        """Whether one request may take so many tokens."""
        return self.tokens_per_minute is None or tokens <= self.tokens_per_minute

    async def answer(self, question: Question, at: int) -> Answer:
        """To one question, without its price; questions are spread over the clients by `at`. Raises Failed."""
        body: dict[str, Any] = {"model": self.model, "messages": question.messages}
        # one that cuts nothing is left out: there are servers that take temperature or top_p, and not both
        body |= {name: value for name, value in self.asking.sampling.items() if (name, value) != ("top_p", 1.0)}
        limit = self.limit
        body[limit] = body.pop("max_tokens")
        if self.asking.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": self.asking.top_logprobs}
        # a gateway that knows it does not bill a question twice that was sent twice
        headers = {"Idempotency-Key": digest([self.asking.identity, question.messages])}
        try:
            client = self.clients[at % len(self.clients)]
            # the client's own timeout is one of silence: a gateway that sends blanks while it waits is not silent
            async with asyncio.timeout(self.timeout):
                response = await client.post(self.place, json=body, headers=headers)
        except (TimeoutError, httpx2.TimeoutException):
            raise Failed("no answer in time") from None
        except httpx2.HTTPError as error:
            said = str(error) or type(error).__name__
            raise Failed(f"no connection to {self.url} ({said})") from None
        if not response.is_success:
            if response.status_code == 400 and limit != NEWER_LIMIT and NEWER_LIMIT in response.text:
                self.limit = NEWER_LIMIT
                return await self.answer(question, at)
            raise _refused(response)
        try:
            return _read(response.json(), question, self.asking.top_logprobs)
        except ValueError as error:
            raise Failed(f"an answer that is none: {error}") from None


class Failed(Exception):
    """A request that was not answered. `final`: what is not to be tried again, the `question` or the `endpoint`;
    `pause`: seconds that the server asked for; `busy`: it has too much to do."""

    def __init__(self, said: str, pause: float | None = None, final: str | None = None, busy: bool = False) -> None:
        self.said, self.pause, self.final, self.busy = said, pause, final, busy
        super().__init__(said)


def _read(found: Any, question: Question, top_logprobs: int | None) -> Answer:
    """What a completion says. Raises ValueError for what is none."""
    try:
        (choice,) = found["choices"]
        message, used = choice["message"], found.get("usage") or {}
        # one that has no text is an answer all the same, and was paid for: a model may think until max_tokens end it
        text = message.get("content") or message.get("refusal") or ""
        if not isinstance(text, str):
            raise ValueError(f"{str(found)[:200]!r}")
        first = None
        if top_logprobs:
            likely = choice["logprobs"]["content"][0]["top_logprobs"]
            first = {str(each["token"]): float(each["logprob"]) for each in likely}
            if not all(each < 1.0 for each in first.values()):
                raise ValueError(f"log-probabilities that are none: {first}")
        # a server that does not count is not one that is free
        said = Question([{"role": "assistant", "content": text}], "")
        prompt = int(used.get("prompt_tokens") or reckoned_tokens(question))
        completion = int(used.get("completion_tokens") or reckoned_tokens(said))
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError):
        raise ValueError(f"{str(found)[:200]!r}") from None
    # half of a character is nothing that could be written down
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    finish, model = str(choice.get("finish_reason")), found.get("model")
    return Answer(text, prompt, completion, finish, model, first_token=first)


def _refused(response: httpx2.Response) -> Failed:
    try:
        body = response.json()
    except ValueError:
        body = response.text
    if isinstance(body, dict):
        body = body.get("error") or body
    code = body.get("code") if isinstance(body, dict) else None
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    text = " ".join(str(body).split())
    status = response.status_code
    said = f"HTTP {status}: {text if len(text) <= 300 else text[:300] + ' ...'}"
    if status in (401, 403, 404) or code == EMPTY_ACCOUNT:
        return Failed(said, final="endpoint")
    if not may_pass(status):
        return Failed(said, final="question")
    pause = None
    with contextlib.suppress(ValueError):
        pause = retry_after.seconds(response.headers.get("retry-after"))
    return Failed(said, pause, busy=status == 429)
