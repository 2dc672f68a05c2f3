"""Responses of which nothing can be learned: empty ones, and such as never end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from cdpo.errors import StepError
from cdpo.step import Step


@dataclass
class Tally:
    """So many responses, and of them the empty ones and those that max_new_tokens cut off."""

    count: int = 0
    empty: float = 0.0
    cut_off: float = 0.0

    @classmethod
    def of(cls, answers: Iterable[Mapping[str, Any]]) -> Self:
        """Of responses that have `response_tokens` (without the end token) and `finish_reason`."""
        tally = cls()
        for each in answers:
            tally.add(1, not each["response_tokens"], each["finish_reason"] == "length")
        return tally

    def add(self, count: int, empty: float, cut_off: float) -> None:
        self.count += count
        self.empty += empty
        self.cut_off += cut_off

    def judge(self, limits: Mapping[str, Any], which: str, *, ends: bool) -> bool:
        """Whether there are enough of them to be judged. Raises StepError where they are useless.

        `limits` are the watchdog's (cdpo/config/watchdog.py). `ends`: whether the policy should know how to end a
        response (`expected_to_end`).
        """
        if self.count < limits["responses"]:
            return False
        if limits["empty"] is not None and self.empty > limits["empty"] * self.count:
            raise StepError(
                f"{round(self.empty)} of {self.count} responses {which} are empty: the policy ends where it should "
                "begin. Is its chat template the one that it was trained with? Was it trained too long, or with too "
                "high a learning_rate? (`watchdog: {empty: null}` in devices.yaml lets it go on)"
            )
        if ends and limits["endless"] is not None and self.cut_off > limits["endless"] * self.count:
            raise StepError(
                f"{round(self.cut_off)} of {self.count} responses {which} never end: max_new_tokens cuts them off, "
                "where most chosen responses of the data end before that. Is its chat template the one that it was "
                "trained with? Was it trained at all, or with too high a learning_rate? "
                "(`watchdog: {endless: null}` in devices.yaml lets it go on)"
            )
        return True


def expected_to_end(step: Step, chosen_tokens: Sequence[int], max_new_tokens: int) -> bool:
    """Whether the step's policy should end most responses within max_new_tokens.

    It should where a step of this store trained it, and the chosen responses of the data (`chosen_tokens`, with their
    end token) do so themselves. A base model that is only named may go on for ever.
    """
    steps = step.work.parent.parent / "steps"
    trained = any(step.has(role) and step.input(role).is_relative_to(steps) for role in ("model", "model_adapter"))
    ending = sum(tokens <= max_new_tokens for tokens in chosen_tokens)
    return trained and 2 * ending > len(chosen_tokens)
