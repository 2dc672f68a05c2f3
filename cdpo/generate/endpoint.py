"""Calls to a server that speaks OpenAI's API: many at once, each until it is answered or refused for good.

What may pass is tried again: no connection, no answer in time, 408, 409, 425, 429, 5xx, and answers that are none. In
between a call waits as long as the server asks (Retry-After), else twice as long each time; a server that has too many
calls (429) gets none at all meanwhile. What cannot pass is an error at once.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import openai

from cdpo import retry_after
from cdpo.engine.services.client import Address
from cdpo.errors import StepError
from cdpo.servers import FIRST_PAUSE, LONGEST_PAUSE, may_pass, on_this_machine

Answer = TypeVar("Answer")

#: seconds between two looks for the address of a server that is being started
LOOK = 0.2
#: seconds after which a sign of life is due although nothing was answered
SIGN = 10.0


class NoAnswer(Exception):
    """What came from the server is not what was asked for; the call is made again."""


class Endpoint:
    """A server, which may be started again elsewhere while it is asked."""

    def __init__(
        self,
        where: Callable[[], Address | None],
        *,
        concurrency: int,
        timeout: float,
        retries: int,
        api_key: str | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """`where` gives the address, None while there is none yet; it raises StepError where there will be none.

        At most `concurrency` calls are under way at once. A call gets `timeout` seconds, and is made again at most
        `retries` times. `alive` is called every now and then while nothing is answered.
        """
        self._where, self._alive = where, alive
        self._concurrency, self._retries = concurrency, retries
        self._timeout = timeout
        # servers of one's own want no key, and the client will not go without one
        self._api_key = api_key or "none"
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._address: Address | None = None
        #: no call is begun before this time (time.monotonic), because the server asked for it
        self._quiet_until = 0.0
        self._runner = asyncio.Runner()

    def close(self) -> None:
        try:
            self._runner.run(self._hang_up())
        finally:
            self._runner.close()

    def ask(
        self,
        calls: Sequence[Callable[[openai.AsyncOpenAI, str], Awaitable[Answer]]],
        names: Callable[[int], str] = "call {}".format,
    ) -> Iterator[tuple[int, Answer]]:
        """(position, answer) of `calls`, as they are answered; each is given the client and the model's name.

        A call may raise NoAnswer. Once one is given up no other is begun, and when those under way have ended a
        StepError tells which were not answered, by their `names`.
        """
        running: dict[asyncio.Task[Answer], int] = {}
        lost: dict[int, str] = {}
        begun = 0
        try:
            while running or (begun < len(calls) and not lost):
                while len(running) < self._concurrency and begun < len(calls) and not lost:
                    task = self._runner.get_loop().create_task(self._insist(calls[begun], begun))
                    running[task] = begun
                    begun += 1
                for task in self._runner.run(self._some(running)):
                    at = running.pop(task)
                    try:
                        answer = task.result()
                    except _GivenUp as error:
                        lost[at] = str(error)
                        continue
                    yield at, answer
        finally:
            self._runner.run(self._cancel(running))
        if lost:
            raise StepError(self._unanswered(lost, names, len(calls) - begun))

    async def _some(self, running: "dict[asyncio.Task[Answer], int]") -> "set[asyncio.Task[Answer]]":
        while True:
            done, _ = await asyncio.wait(running, timeout=SIGN, return_when=asyncio.FIRST_COMPLETED)
            self._alive()
            if done:
                return done

    async def _cancel(self, running: "dict[asyncio.Task[Answer], int]") -> None:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _insist(self, call: Callable[[openai.AsyncOpenAI, str], Awaitable[Answer]], at: int) -> Answer:
        """The answer to one call. Raises _GivenUp."""
        jitter = random.Random(at)
        said = ""
        for attempt in range(self._retries + 1):
            address = await self._found()
            try:
                return await call(self._client(address.url), address.model)
            except openai.APIStatusError as error:
                said = _said(error)
                if not may_pass(error.status_code):
                    raise _GivenUp(said) from None
                pause = retry_after.seconds(error.response.headers.get("retry-after"))
                if error.status_code == 429 and pause is not None:
                    self._quiet_until = max(self._quiet_until, time.monotonic() + pause)
            except openai.APIConnectionError as error:
                # its server may have been started again at another address
                self._address, pause = None, None
                late = isinstance(error, openai.APITimeoutError)
                said = "no answer in time" if late else f"no connection to {address.url} ({error.__cause__ or error})"
            except (openai.APIError, NoAnswer, ValueError) as error:
                said, pause = f"an answer that is none: {error}", None
            if attempt < self._retries:
                usual = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * jitter.uniform(0.75, 1.25)
                await asyncio.sleep(usual if pause is None else pause)
        raise _GivenUp(f"{said}, after {self._retries + 1} attempts")

    def _client(self, url: str) -> openai.AsyncOpenAI:
        if url not in self._clients:
            self._clients[url] = openai.AsyncOpenAI(
                api_key=self._api_key,
                base_url=url,
                timeout=self._timeout,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=not on_this_machine(url)),
            )
        return self._clients[url]

    async def _hang_up(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def _found(self) -> Address:
        while (wait := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        while self._address is None:
            self._address = self._where()
            if self._address is None:
                await asyncio.sleep(LOOK)
        return self._address

    def _unanswered(self, lost: dict[int, str], names: Callable[[int], str], not_begun: int) -> str:
        shown = "; ".join(f"{names(at)}: {said}" for at, said in sorted(lost.items())[:5])
        more = f"; and {len(lost) - 5} more" if len(lost) > 5 else ""
        rest = f" ({not_begun} more were not asked then)" if not_begun else ""
        return f"the server left {len(lost)} unanswered{rest}. {shown}{more}. `cdpo execute` asks for these again"


class _GivenUp(Exception):
    """A call will not be answered, and why."""


def _said(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    text = " ".join(str(body or error.response.text).split())
    text = text if len(text) <= 300 else text[:300] + " ..."
    if error.status_code in (401, 403):
        text += " (the key is taken from the environment variable that `api_key` names in devices.yaml)"
    return f"HTTP {error.status_code}: {text}"
