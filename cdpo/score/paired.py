"""The responses to a prompt, scored beside each other, by a step that goes on after it was killed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cdpo.config.canonical import digest
from cdpo.journal import Journal, item_key
from cdpo.score.fit import report_dropped
from cdpo.score.reward import Pair
from cdpo.score.scorer import MISFIT_ADVICE, RewardScorer

if TYPE_CHECKING:
    from cdpo.data.messages import Messages
    from cdpo.step import Step


class Answered(NamedTuple):
    """A prompt of a split and the responses to it, as many in each row."""

    split: str
    prompt: "Messages"
    responses: tuple[str, ...]


def content(pair: Pair) -> str:
    """What a text is known by: a hash of the prompt's messages and the response, 64 hex digits."""
    return digest(pair)


def score_responses(
    step: "Step",
    scorer: RewardScorer,
    rows: Sequence[Answered],
    *,
    max_dropped: float,
    what: str,
    known: Mapping[str, float | None] | None = None,
) -> dict[int, tuple[float, ...]]:
    """The rewards of a row's responses by row, for the rows whose responses all fit the reward model.

    A text that stands in several rows with the same prompt is scored once, so that it ties with itself; one in `known`,
    by its `content`, has the reward that stands there (None: it does not fit) and is not scored. Rewards are appended
    to ckpt/scores.jsonl as they come. The other rows, counted as `what`, are refused where they are more than the share
    `max_dropped`. A shard leaves the rewards of its share of the texts in `out`, and nothing is returned.
    """
    # The texts of row r stand beside each other, at width * r and behind it, and are scored alike.
    width = len(rows[0].responses) if rows else 0
    pairs = [(row.prompt, text) for row in rows for text in row.responses]
    contents = [content(pair) for pair in pairs]
    first: dict[str, int] = {}
    for at, name in enumerate(contents):
        first.setdefault(name, at)
    found: dict[str, float | None] = {name: known[name] for name in first if known is not None and name in known}
    new = [name for name in first if name not in found]
    encoded = dict(zip(new, scorer.encode([pairs[first[name]] for name in new]), strict=True))
    misfits = {name for name in first if (found[name] if name in found else encoded[name]) is None}
    texts = [contents[width * row : width * (row + 1)] for row in range(len(rows))]
    # A row is compared within itself, so it stays or goes as a whole.
    whole = [row for row, names in enumerate(texts) if misfits.isdisjoint(names)]
    report_dropped(
        step,
        dropped=len(rows) - len(whole),
        total=len(rows),
        allowed=max_dropped,
        what=f"{what} {scorer.misfit}",
        advice=MISFIT_ADVICE,
    )
    needed = {name for row in whole for name in texts[row]}
    places = [first[name] for name in new if name in needed]
    keys = [item_key(rows[at // width].split, at, *pairs[at]) for at in places]
    mine = step.share(keys)
    places, keys = [places[place] for place in mine], [keys[place] for place in mine]
    with Journal.of(step, "scores.jsonl") as journal:
        done = {place for place, key in enumerate(keys) if key in journal}
        if done:
            step.note(f"going on after {len(done)} of {len(places)} scores")
        step.progress(len(done), len(places), unit="scores")
        rewards = scorer.rewards([encoded[contents[at]] for at in places], done) if len(done) < len(places) else ()
        for place, reward in rewards:
            if place not in done:
                journal.append(keys[place], reward)
                done.add(place)
                step.progress(len(done), len(places), unit="scores")
        if step.shard is not None:
            journal.publish(step, "scores.jsonl", keys)
            return {}
        found |= {contents[at]: journal.items[key] for at, key in zip(places, keys, strict=True)}
    return {row: tuple(found[name] for name in texts[row]) for row in whole}  # type: ignore[misc]
