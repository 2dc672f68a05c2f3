"""The rows of a global batch with the pairs of routed rows replaced by two responses of the policy.

The prompt is the row's own; the two responses, their label and the reference's log-probabilities stay in that row. What
is trained on are the very token ids that were drawn: a response that ended holds its end token, one that was cut off by
max_new_tokens has none.

A response's random stream is seeded by (seed, epoch, row, 0 or 1): what else is sampled at the same time, on how many
devices and in which order, changes nothing. With a staleness of s the responses of s + 1 global batches are sampled
at once, by the policy of the first one's optimiser step; at s = 0 it is the policy that the step then changes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cdpo.sail.routes import REWARD_LABELLED, SAMPLED, Mixture, label_draws
from cdpo.seeds import derive_seed
from cdpo.train.batches import GlobalBatches, Row

#: responses of a prompt
RESPONSES = 2
#: what a sampled pair has in place of the numbers of the row's own
UNSAID = {"bt_prob": 1.0, "margin": 0.0, "weight": 1.0}


class Response(NamedTuple):
    token_ids: list[int]
    #: whether it ended by itself, in its end token
    ended: bool


class Workshop(Protocol):
    """What makes responses and rates them; the ranks work together, so all call these in the same order."""

    def sample(self, prompts: Sequence[list[int]], seeds: Sequence[int]) -> list[Response]:
        """One response of the policy, as it now is, for each prompt."""

    def rate(self, rows: Sequence[Row], responses: Sequence[Response]) -> list[float | None]:
        """The reward of each response to the prompt of its row, higher is better; None where there can be none."""


@dataclass
class Report:
    """What making pairs took and gave, since `taken` was last called."""

    pairs: int = 0
    identical: int = 0
    tokens: int = 0
    empty: int = 0
    cut_off: int = 0
    rated: int = 0
    unrated: int = 0
    reward: float = 0.0
    reward_margin: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: {"sampling": 0.0, "labels": 0.0, "reference": 0.0})


class OnlinePairs:
    """Gives the rows of global batches, as `GlobalBatches.rows_of` does, with routes and sampled pairs."""

    def __init__(
        self,
        batches: GlobalBatches,
        mixture: Mixture,
        workshop: Workshop,
        add_reference: Callable[[Sequence[Row]], None],
        *,
        seed: int,
        staleness: int,
        reward_probability: Callable[[float], float],
        draw_labels: bool,
        steps_left: Callable[[], int],
    ) -> None:
        """`add_reference` puts the reference's log-probabilities into rows. `reward_probability`: P(first wins) of a
        difference of rewards; with `draw_labels` the label is drawn from it, else the likelier wins. `steps_left`:
        optimiser steps to come, the next one included."""
        self.batches, self.mixture, self.workshop, self.add_reference = batches, mixture, workshop, add_reference
        self.seed, self.staleness = seed, staleness
        self.reward_probability, self.draw_labels, self.steps_left = reward_probability, draw_labels, steps_left
        #: (epoch, number of the step) -> place in the global batch -> what replaces the row's pair
        self.waiting: dict[tuple[int, int], dict[int, Row]] = {}
        self.report = Report()

    def rows_of(self, epoch: int, number: int) -> list[Row]:
        rows = self._routed(epoch, number)
        if any(row["route"] in SAMPLED for row in rows):
            if (epoch, number) not in self.waiting:
                self._sample_ahead(epoch, number)
            for at, pair in self.waiting.pop((epoch, number)).items():
                rows[at] = {**rows[at], **pair}
        return rows

    def taken(self) -> Report:
        """The report up to now; the next one starts at nothing."""
        report, self.report = self.report, Report()
        return report

    def offline_rows(self, epochs: int) -> list[int]:
        """The rows that keep their own pair in at least one of so many epochs, ascending."""
        rows = len(self.batches.dataset)
        own = {
            index
            for epoch in range(epochs)
            for index, route in enumerate(self.mixture.routes(self.seed, epoch, rows))
            if route not in SAMPLED
        }
        return sorted(own)

    def _routed(self, epoch: int, number: int) -> list[Row]:
        """Copies of the rows of a global batch with their `route` and the number that decides their label, `draw`."""
        count = len(self.batches.dataset)
        routes = self.mixture.routes(self.seed, epoch, count)
        draws = label_draws(self.seed, epoch, count)
        return [
            {**self.batches.dataset[index], "route": int(routes[index]), "draw": float(draws[index]), "index": index}
            for index in self.batches.indices(epoch, number)
        ]

    def _sample_ahead(self, epoch: int, number: int) -> None:
        """Make the pairs of this global batch and of those that `staleness` lets be sampled with it."""
        last = min(number + 1 + self.staleness, self.batches.steps, number + max(1, self.steps_left()))
        places: list[tuple[int, int]] = []
        rows: list[Row] = []
        for step in range(number, last):
            for at, row in enumerate(self._routed(epoch, step)):
                if row["route"] in SAMPLED:
                    places.append((step, at))
                    rows.append(row)
        for (step, at), pair in zip(places, self._pairs(rows, epoch), strict=True):
            self.waiting.setdefault((epoch, step), {})[at] = pair

    def _pairs(self, rows: list[Row], epoch: int) -> list[Row]:
        """What replaces the pairs of `rows`: ids, bt_prob, whether cut off, and the reference's log-probabilities."""
        asked = [(row, k) for row in rows for k in range(RESPONSES)]
        began = time.monotonic()
        responses = self.workshop.sample(
            [row["prompt_ids"] for row, _ in asked],
            [derive_seed(self.seed, "responses", epoch, row["index"], k) for row, k in asked],
        )
        sampled = time.monotonic()
        pairs = [self._pair(row, *responses[RESPONSES * at : RESPONSES * (at + 1)]) for at, row in enumerate(rows)]
        rated = [at for at, row in enumerate(rows) if row["route"] in REWARD_LABELLED]
        if rated:
            rewards = self.workshop.rate(
                [rows[at] for at in rated for _ in range(RESPONSES)],
                [responses[RESPONSES * at + k] for at in rated for k in range(RESPONSES)],
            )
            for place, at in enumerate(rated):
                self._label(pairs[at], rows[at]["draw"], *rewards[RESPONSES * place : RESPONSES * (place + 1)])
        labelled = time.monotonic()
        self.add_reference(pairs)
        seconds = self.report.seconds
        seconds["sampling"] += sampled - began
        seconds["labels"] += labelled - sampled
        seconds["reference"] += time.monotonic() - labelled
        self.report.pairs += len(pairs)
        self.report.tokens += sum(len(each.token_ids) for each in responses)
        self.report.empty += sum(each.ended and len(each.token_ids) == 1 for each in responses)
        self.report.cut_off += sum(not each.ended for each in responses)
        return pairs

    def _pair(self, row: Row, first: Response, second: Response) -> Row:
        """Two responses to the row's prompt in the order in which they were drawn.

        What the row said of its own pair is not said of this one: a label of the policy's is drawn when the loss is
        taken, and is then certain.
        """
        self.report.identical += first.token_ids == second.token_ids
        pair = {"prompt_ids": row["prompt_ids"], "chosen_ids": first.token_ids, "rejected_ids": second.token_ids}
        return pair | {name: value for name, value in UNSAID.items() if name in row}

    def _label(self, pair: Row, draw: float, first: float | None, second: float | None) -> None:
        """Put the winner by rewards first, and the probability that it wins into `bt_prob`.

        Where one of the two cannot be rated, as where both have the same reward, nothing is known: a coin decides.
        """
        if first is None or second is None:
            self.report.unrated += 1
            first = second = 0.0
        else:
            self.report.rated += 1
            self.report.reward += (first + second) / 2
            self.report.reward_margin += abs(first - second)
        probability = self.reward_probability(first - second)
        first_wins = draw < probability if self.draw_labels or first == second else first > second
        if not first_wins:
            pair["chosen_ids"], pair["rejected_ids"] = pair["rejected_ids"], pair["chosen_ids"]
            probability = 1.0 - probability
        if "bt_prob" in pair:
            pair["bt_prob"] = probability
