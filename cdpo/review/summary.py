"""What the votes on a dataset or on responses amount to: how many, how far reviewers agree with each other, with the
dataset's labels and with scores."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdpo.judge.agreement import majority
from cdpo.review.acts import BAD, CHOSEN, GOOD, REJECTED, Place, Reviews, votes
from cdpo.stats.agreement import agreeing_pairs, alpha

if TYPE_CHECKING:
    from cdpo.stats.intervals import Estimate

_OVER_ROWS = "these reviewers; the interval is over rows"


@dataclass(frozen=True)
class Agreement:
    """Between reviewers, on rows that two or more of them voted on."""

    #: over rows: the share of pairs of a row's reviewers who gave the same vote; n is the number of rows
    percent: "Estimate"
    #: Krippendorff's nominal alpha; None where all votes are the same
    alpha: float | None


@dataclass(frozen=True)
class Progress:
    """Who did what."""

    #: reviewer -> rows voted on
    voted: dict[str, int]
    #: rows that at least one reviewer voted on, flagged or wrote about
    rows: int
    flagged: int


def progress(reviews: Reviews) -> Progress:
    voted = Counter(who for of in reviews.values() for who, review in of.items() if review.vote is not None)
    flagged = sum(any(review.flag for review in of.values()) for of in reviews.values())
    others = {who: 0 for of in reviews.values() for who in of if who not in voted}
    return Progress(dict(sorted({**voted, **others}.items())), len(reviews), flagged)


def agreement(reviews: Reviews) -> Agreement | None:
    """None where no row has two votes."""
    from cdpo.stats.intervals import estimate

    shared = [labels for of in reviews.values() if len(labels := votes(of)) > 1]
    if not shared:
        return None
    each = [agreeing_pairs(labels) for labels in shared]
    return Agreement(estimate(each, conditional_on=_OVER_ROWS, rate=True), alpha(shared))


def decided(reviews: Reviews) -> dict[Place, str]:
    """The vote of more than half of a row's reviewers, where there is one."""
    found = {place: majority(votes(of)) for place, of in reviews.items()}
    return {place: str(vote) for place, vote in found.items() if vote is not None}


def with_labels(majorities: Mapping[Place, str]) -> "Estimate | None":
    """How often the majority prefers what the dataset calls chosen, of the pairs on which it prefers one."""
    return _share([vote == CHOSEN for vote in majorities.values() if vote in (CHOSEN, REJECTED)])


def with_margins(majorities: Mapping[Place, str], margins: Mapping[Place, float]) -> "Estimate | None":
    """How often the majority prefers the response that scores higher: `margins` are chosen minus rejected; equal
    scores, and rows without any, play no part."""
    both = [(vote, margins.get(place, 0.0)) for place, vote in majorities.items() if vote in (CHOSEN, REJECTED)]
    return _share([(vote == CHOSEN) == (margin > 0) for vote, margin in both if margin > 0 or margin < 0])


def ranked(majorities: Mapping[Place, str], scores: Mapping[Place, float]) -> tuple[float, int, int] | None:
    """For single responses: how often one that the majority calls good scores higher than one that it calls bad (a tie
    counts half), over all such pairs; and how many good and bad ones. None where either is missing."""
    import numpy as np

    def of(wanted: str) -> "np.ndarray":
        found = [scores[place] for place, vote in majorities.items() if vote == wanted and place in scores]
        return np.array([value for value in found if np.isfinite(value)])

    good, bad = of(GOOD), np.sort(of(BAD))
    if not good.size or not bad.size:
        return None
    below, upto = np.searchsorted(bad, good, "left"), np.searchsorted(bad, good, "right")
    return float((below + upto).sum() / (2 * good.size * bad.size)), int(good.size), int(bad.size)


def _share(hits: Sequence[bool]) -> "Estimate | None":
    from cdpo.stats.intervals import estimate

    return estimate([float(hit) for hit in hits], conditional_on=_OVER_ROWS, rate=True) if hits else None
