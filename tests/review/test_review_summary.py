"""What votes amount to, against counting every pair and scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from cdpo.review.acts import BAD, CHOSEN, GOOD, REJECTED, TIE, Place, Review
from cdpo.review.summary import agreement, decided, progress, ranked, with_labels, with_margins
from cdpo.stats.agreement import alpha


def place(at):
    return Place("train", f"{at:016x}", "c")


def reviews(*rows):
    """Each row's votes, by reviewers a, b, c; None for one who only flagged it."""
    return {
        place(at): {who: Review(vote, flag=vote is None) for who, vote in zip("abc", votes, strict=False)}
        for at, votes in enumerate(rows)
    }


def test_only_rows_with_two_votes_tell_of_agreement():
    said = reviews([CHOSEN], [CHOSEN, CHOSEN], [CHOSEN, REJECTED, REJECTED], [CHOSEN, None])
    found = agreement(said)
    assert found is not None
    assert found.percent.n == 2
    assert found.percent.mean == pytest.approx((1 + 1 / 3) / 2)
    assert agreement(reviews([CHOSEN], [None, CHOSEN])) is None


def test_who_did_what_and_what_the_majority_says():
    said = reviews([CHOSEN], [CHOSEN, REJECTED], [CHOSEN, REJECTED, REJECTED], [None])
    assert progress(said).voted == {"a": 3, "b": 2, "c": 1}
    assert (progress(said).rows, progress(said).flagged) == (4, 1)
    assert decided(said) == {place(0): CHOSEN, place(2): REJECTED}


def test_majorities_against_labels_and_scores():
    votes = dict(enumerate([CHOSEN, CHOSEN, REJECTED, TIE, CHOSEN, CHOSEN]))
    majorities = {place(at): vote for at, vote in votes.items()}
    assert with_labels(majorities).mean == pytest.approx(4 / 5)
    # one agrees, one does not, one agrees, a tie, equal scores, none
    margins = {place(at): value for at, value in enumerate([2.0, -1.0, -3.0, 5.0, 0.0])}
    found = with_margins(majorities, margins)
    assert (found.mean, found.n) == (pytest.approx(2 / 3), 3)
    assert with_margins(majorities, {each: float("nan") for each in majorities}) is None
    assert with_labels({place(0): TIE}) is None


def test_single_responses_are_ranked_as_scipy_does():
    draw = np.random.default_rng(3)
    majorities = {place(at): GOOD if draw.random() < 0.6 else BAD for at in range(40)}
    scores = {each: float(draw.integers(0, 5)) for each in majorities}
    scores[place(0)] = float("nan")
    del scores[place(1)]
    good, bad = (
        [scores[each] for each, vote in majorities.items() if vote == kind and np.isfinite(scores.get(each, np.nan))]
        for kind in (GOOD, BAD)
    )
    share = stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))
    assert ranked(majorities, scores) == (pytest.approx(share), len(good), len(bad))
    assert ranked({place(0): GOOD}, {place(0): 1.0}) is None


def test_alpha_is_one_minus_observed_over_expected_disagreement():
    draw = np.random.default_rng(5)
    for _ in range(300):
        items = [list(draw.choice(list("abcd"), draw.integers(0, 5))) for _ in range(draw.integers(0, 7))]
        rows = [labels for labels in items if len(labels) > 1]
        every = [label for labels in rows for label in labels]
        pairs = list(itertools.permutations(every, 2))
        expected = sum(one != other for one, other in pairs) / max(len(pairs), 1)
        observed = sum(
            sum(one != other for one, other in itertools.permutations(labels, 2)) / (len(labels) - 1) for labels in rows
        ) / max(len(every), 1)
        assert alpha(items) == (pytest.approx(1 - observed / expected) if expected else None)
