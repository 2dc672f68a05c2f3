"""Two responses to a prompt, scored beside each other, by a step that goes on after it was killed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cdpo.config.canonical import canonical_json
from cdpo.journal import Journal, item_key
from cdpo.score.fit import report_dropped
from cdpo.score.scorer import MISFIT_ADVICE, RewardScorer

if TYPE_CHECKING:
    from cdpo.data.messages import Messages
    from cdpo.step import Step


class Compared(NamedTuple):
    """A prompt of a split and the two responses to it."""

    split: str
    prompt: "Messages"
    first: str
    second: str


def score_both(
    step: "Step", scorer: RewardScorer, rows: Sequence[Compared], *, max_dropped: float, what: str
) -> dict[int, tuple[float, float]]:
    """(reward of the first response, of the second) by row, for the rows whose responses both fit the reward model.

    A text that stands in several rows with the same prompt is scored once, so that it ties with itself. Rewards are
    appended to ckpt/scores.jsonl as they come. The other rows, counted as `what`, are refused where they are more than
    the share `max_dropped`.
    """
    # Both texts of row r stand beside each other, at 2r and 2r + 1, and are scored alike.
    pairs = [(row.prompt, text) for row in rows for text in (row.first, row.second)]
    encoded = scorer.encode(pairs)
    first: dict[str, int] = {}
    #: where each text is scored
    at_first = [first.setdefault(canonical_json(pair), at) for at, pair in enumerate(pairs)]
    # A row is compared within itself, so it stays or goes as a whole.
    whole = [row for row in range(len(rows)) if encoded[2 * row] is not None and encoded[2 * row + 1] is not None]
    places = sorted({at_first[at] for row in whole for at in (2 * row, 2 * row + 1)})
    report_dropped(
        step,
        dropped=len(rows) - len(whole),
        total=len(rows),
        allowed=max_dropped,
        what=f"{what} {scorer.misfit}",
        advice=MISFIT_ADVICE,
    )
    keys = {at: item_key(rows[at // 2].split, at, *pairs[at]) for at in places}
    with Journal.of(step, "scores.jsonl") as journal:
        done = {place for place, at in enumerate(places) if keys[at] in journal}
        if done:
            step.note(f"going on after {len(done)} of {len(places)} scores")
        step.progress(len(done), len(places), unit="scores")
        for place, reward in scorer.rewards([encoded[at] for at in places], done):
            if place not in done:
                journal.append(keys[places[place]], reward)
                done.add(place)
                step.progress(len(done), len(places), unit="scores")
        found = {at: journal.items[keys[at]] for at in places}
    return {row: (found[at_first[2 * row]], found[at_first[2 * row + 1]]) for row in whole}
