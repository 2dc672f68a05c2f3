"""A judge behind OpenAI's API: many requests at once to all of its endpoints, within their limits and a budget.

What may pass is sent again, a bounded number of times: no connection, no answer in time, 408, 409, 425, 429, 5xx, and
answers that are none. An endpoint that asks for it (Retry-After) is left alone for so long, and so is one that fails;
its questions may go to another. A key that is refused, an empty account or a budget that is spent end the asking: what
is under way comes back, is kept, and is not asked again by the next attempt.
"""

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from cdpo import stopping
from cdpo.config.judges import Prices
from cdpo.errors import StepError
from cdpo.judge.answers import Answer, Question, Refusal
from cdpo.judge.endpoint import Asking, Endpoint, Failed
from cdpo.judge.ledger import Ledger
from cdpo.judge.reckoning import reckoned_tokens
from cdpo.servers import FIRST_PAUSE, LONGEST_PAUSE

#: seconds between two signs of life, and between two looks at what has changed
SIGN, LOOK = 10.0, 0.1
#: after so many failures one after the other an endpoint is left alone for a while
FAILING = 8
#: so many questions refused, and none answered: the next will not be answered either
REFUSALS = 20


class ApiJudge:
    """A `cdpo.judge.answers.Judge`. `given` is what devices.yaml says of it (cdpo.config.judges.JudgeService)."""

    def __init__(
        self,
        name: str,
        given: Mapping[str, Any],
        sampling: Mapping[str, Any],
        *,
        ledger: Ledger,
        step: str = "",
        top_logprobs: int | None = None,
        alive: Callable[[], None] = lambda: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`sampling` holds temperature, top_p and max_tokens; `top_logprobs` asks for those of the first token."""
        self.name, self.sampling, self.top_logprobs = name, dict(sampling), top_logprobs
        self.identity = {"api": name, **self.sampling, **({"top_logprobs": top_logprobs} if top_logprobs else {})}
        self.ledger, self.step = ledger, step
        self._prices = Prices.model_validate(given["prices"]) if given["prices"] else None
        self.retries, self.note, self._alive = given["retries"], note, alive
        self._runner = asyncio.Runner()
        asking = Asking(self.sampling, top_logprobs, self.identity)
        self.endpoints = [Endpoint(name, each, given["timeout_seconds"], asking) for each in given["endpoints"]]

    def close(self) -> None:
        try:
            self._runner.run(self._hang_up())
        finally:
            self._runner.close()

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer | Refusal]]:
        """Raises StepError where some are unanswered, once all that were under way have come back."""
        asking = _Asking(self, questions)
        with stopping.finishing():
            try:
                while (answered := self._runner.run(asking.some(self.endpoints))) is not None:
                    yield from answered
                    self._alive()
            finally:
                self._runner.run(asking.cancel())
        if asking.missing:
            raise StepError(asking.unanswered())

    def cost(self, question: Question) -> float:
        """Of a question whose answer is as long as it may be, in dollars; 0 where no price is known."""
        most = self.sampling["max_tokens"]
        return self._prices.of(reckoned_tokens(question), most) if self._prices else 0.0

    def priced(self, answer: Answer) -> Answer:
        """With what it cost, where prices are known."""
        if self._prices is None:
            return answer
        return replace(answer, dollars=self._prices.of(answer.prompt_tokens, answer.completion_tokens))

    async def _hang_up(self) -> None:
        for client in (client for each in self.endpoints for client in each.clients):
            await client.aclose()


class _Waiting(NamedTuple):
    """A question that waits for its turn."""

    at: int
    attempts: int = 0
    #: answers that had come when it was last sent, and when it was sent first
    seen: int = 0
    began: int | None = None


class _Asking:
    """The questions of one call of `ask`: those that wait, those under way, and those that were given up."""

    def __init__(self, judge: ApiJudge, questions: Sequence[Question]) -> None:
        self.judge, self.questions = judge, questions
        #: that each may take at most, prompt and answer
        self.tokens = [reckoned_tokens(each) + judge.sampling["max_tokens"] for each in questions]
        self.waiting = deque(_Waiting(at) for at in range(len(questions)))
        #: how many are to be asked again, and not yet
        self.resting = 0
        self.under_way = 0
        self.answered: deque[tuple[int, Answer | Refusal]] = deque()
        self.count = 0
        self.refused = 0
        self.lost: dict[int, str] = {}
        #: why nothing more is begun
        self.ended: str | None = None
        #: dollars that what is under way may cost
        self.reserved = 0.0
        self.tasks: set[asyncio.Task[None]] = set()
        self.answers_came, self.changed = asyncio.Event(), asyncio.Event()

    @property
    def missing(self) -> int:
        return len(self.questions) - self.count

    async def some(self, endpoints: Sequence[Endpoint]) -> list[tuple[int, Answer | Refusal]] | None:
        """What was answered since; empty where nothing was for a while, None once nothing more will be."""
        if not self.tasks:
            workers = [each for each in endpoints for _ in range(min(each.concurrency, len(self.questions)))]
            self.tasks = {asyncio.create_task(self._serve(each)) for each in workers}
        began = time.monotonic()
        while not self.answered:
            if stopping.asked():
                self._end("the step was told to stop")
            if all(task.done() for task in self.tasks):
                for task in self.tasks:
                    task.result()
                return list(self.answered) or None
            if time.monotonic() - began > SIGN:
                return []
            self.answers_came.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.answers_came.wait(), LOOK)
        answered = list(self.answered)
        self.answered.clear()
        return answered

    async def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def unanswered(self) -> str:
        limits = sorted(f"{each.url} allows {each.tokens_per_minute}" for each in self.judge.endpoints if not each.out)
        for each in self.waiting:
            self.lost[each.at] = f"it may take {self.tokens[each.at]} tokens, and {', '.join(limits)} a minute"
        if self.ended is not None:
            return (
                f"{self.ended}. {self.missing} of {len(self.questions)} questions are unanswered; the others are kept"
            )
        shown = "; ".join(f"{self.questions[at].name}: {why}" for at, why in sorted(self.lost.items())[:5])
        more = f"; and {len(self.lost) - 5} more" if len(self.lost) > 5 else ""
        return (
            f"the judge {self.judge.name} left {self.missing} of {len(self.questions)} unanswered. {shown}{more}. The "
            "others are kept; `cdpo execute` asks for these again"
        )

    def _end(self, why: str) -> None:
        """Begin nothing more."""
        self.ended = self.ended or why
        self.waiting.clear()
        self.changed.set()

    async def _serve(self, endpoint: Endpoint) -> None:
        """One of the requests that an endpoint may have under way at once."""
        while True:
            # only who has the turn takes a question: those that wait for a slow endpoint are free for another
            async with endpoint.turn:
                taken = await self._taken(endpoint)
            if taken is None:
                return
            each, tokens, dollars = taken
            try:
                await self._answer(endpoint, each, tokens)
            finally:
                self.reserved -= dollars
                self.under_way -= 1
                self.changed.set()

    async def _taken(self, endpoint: Endpoint) -> tuple[_Waiting, int, float] | None:
        """The next question, once the endpoint's limits allow it, with the tokens and dollars that it may cost; None
        where there is nothing more to be asked here."""
        judge = self.judge
        while endpoint.out is None and self.ended is None:
            each = next((each for each in self.waiting if endpoint.allows(self.tokens[each.at])), None)
            if each is None:
                if not self.resting and not self.under_way:
                    break
                self.changed.clear()
                await self.changed.wait()
                continue
            if (wait := endpoint.limiter.wait()) > 0:
                # with no question in hand: meanwhile another endpoint may ask it, or the step be told to stop
                await asyncio.sleep(min(wait, LOOK))
                continue
            self.waiting.remove(each)
            tokens, dollars = self.tokens[each.at], judge.cost(self.questions[each.at])
            if not judge.ledger.allows(self.reserved + dollars):
                self._cannot_afford(each, dollars)
                continue
            self.reserved += dollars
            self.under_way += 1
            endpoint.limiter.take(tokens)
            return each, tokens, dollars
        self.changed.set()
        return None

    def _cannot_afford(self, each: _Waiting, dollars: float) -> None:
        if self.under_way:  # which may cost less than it might
            self._rest(each, LOOK)
            return
        ledger = self.judge.ledger
        self._end(
            f"the budget of the judge {self.judge.name} does not allow more: ${ledger.spent:.4g} of "
            f"${ledger.budget:.4g} are spent, and one more answer may cost ${dollars:.2g} (`budget` in devices.yaml)"
        )

    async def _answer(self, endpoint: Endpoint, each: _Waiting, tokens: int) -> None:
        try:
            answer = await endpoint.answer(self.questions[each.at], each.at)
        except Failed as failed:
            began = self.count if each.began is None else each.began
            self._failed(endpoint, each._replace(seen=self.count, began=began), failed, progress=self.count > each.seen)
            return
        answer = self.judge.priced(answer)
        endpoint.failures = 0
        endpoint.limiter.settle(tokens, answer.prompt_tokens + answer.completion_tokens)
        self.judge.ledger.paid(answer, self.judge.step)
        self.count += 1
        self.answered.append((each.at, answer))
        self.answers_came.set()

    def _failed(self, endpoint: Endpoint, each: _Waiting, failed: Failed, *, progress: bool) -> None:
        if failed.final == "endpoint":
            if endpoint.out is None:
                endpoint.out = failed.said
                self.judge.note(f"{endpoint.url} is not asked any more: {failed.said}")
            self.waiting.append(each)
            if all(other.out is not None for other in self.judge.endpoints):
                self._end(f"the judge {self.judge.name} cannot be asked: {failed.said}")
            return
        if failed.final == "question":
            self.refused += 1
            if self.refused >= REFUSALS and self.count == self.refused - 1:
                self._end(f"the judge {self.judge.name} refuses every question: {failed.said}")
                return
            self.count += 1
            self.answered.append((each.at, Refusal(failed.said)))
            self.answers_came.set()
            return
        # a server that is busy with others of these questions is not one that fails
        attempts = each.attempts + (not (failed.busy and progress))
        if attempts > self.judge.retries:
            self.lost[each.at] = f"{failed.said}, after {attempts} attempts"
            if self.count == each.began:
                # nobody was answered all the while: the others need not find that out one by one
                self._end(f"the judge {self.judge.name} does not answer: {self.lost[each.at]}")
            return
        endpoint.failures += 1
        if endpoint.failures == FAILING:
            self.judge.note(f"{endpoint.url} fails, and is tried again: {failed.said}")
        pause, told = failed.pause, failed.pause is not None
        if pause is None:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(each.attempts, 10))
            pause *= random.Random(each.at).uniform(0.75, 1.25)
        # what this endpoint has no time for may go to another at once, and not to this one
        elsewhere = len(self.judge.endpoints) > 1 and (failed.busy or told)
        if told or elsewhere or endpoint.failures >= FAILING:
            endpoint.limiter.quiet(pause)
        self._rest(each._replace(attempts=attempts), 0.0 if elsewhere else pause)

    def _rest(self, each: _Waiting, seconds: float) -> None:
        """Let a question wait for so long before it is asked again."""

        def again() -> None:
            self.resting -= 1
            if self.ended is None:
                # before those that were not asked yet, so that what fails for good is known soon
                self.waiting.appendleft(each)
            self.changed.set()

        self.resting += 1
        asyncio.get_running_loop().call_later(seconds, again)
