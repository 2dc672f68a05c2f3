"""All runs against all: against scipy, by hand, and by thousands of simulated evaluations."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cdpo.stats.matrix import all_pairs, bootstrap, compare_pairs, holm
from cdpo.stats.paired import between_seeds
from cdpo.stats.strengths import strengths

#: simulations of each claim, and how many may stray: a true 5 % goes beyond in one of ten thousand suites
SIMULATIONS = 2000
MOST_OF_5 = stats.binom.ppf(0.9999, SIMULATIONS, 0.05)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_the_test_of_a_pair_is_scipys():
    scores = rng().normal(size=(3, 80)) + np.array([[0.0], [0.2], [0.5]])
    found = all_pairs(scores, rng(1))
    assert [(each.a, each.b) for each in found] == [(0, 1), (0, 2), (1, 2)]
    for each in found:
        theirs = stats.ttest_rel(scores[each.b], scores[each.a])
        assert each.p == pytest.approx(theirs.pvalue, rel=1e-9)
        assert (each.n, each.missing) == (80, 0)
        ends = theirs.confidence_interval()
        assert (each.low, each.high) == pytest.approx((ends.low, ends.high), abs=0.05)


def test_holm_by_hand():
    # Holm (1979): the k-th smallest of m times m - k + 1, never below an earlier one
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferronis(p_values):
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert p <= corrected <= min(1.0, p * len(p_values)) + 1e-12


def test_what_is_missing_is_left_out_of_its_own_pairs_and_counted():
    scores = rng().normal(size=(3, 20))
    scores[1, :5] = np.nan
    first, second, third = all_pairs(scores, rng(1))
    assert [(each.n, each.missing) for each in (first, second, third)] == [(15, 5), (20, 0), (15, 5)]
    alone = all_pairs(scores[[0, 2]], rng(1))[0]
    assert second.p == alone.p
    assert first.difference == pytest.approx((scores[1, 5:] - scores[0, 5:]).mean())


def test_nothing_is_said_of_too_little():
    (none,) = all_pairs(np.full((2, 4), np.nan), rng())
    assert (none.difference, none.p, none.p_holm, none.n, none.verdict) == (None, None, None, 0, "not resolved")
    (one,) = all_pairs(np.array([[1.0, np.nan], [0.0, 0.0]]), rng())
    assert (one.difference, one.low, one.p, one.smallest, one.verdict) == (-1.0, None, None, None, "not resolved")
    assert all_pairs(np.zeros((1, 4)), rng()) == []
    with pytest.raises(ValueError, match="finite"):
        all_pairs(np.array([[np.inf], [0.0]]), rng())


def test_verdicts_are_those_of_the_whole_matrix():
    scores = np.stack([np.zeros(200), rng().normal(0.15, 1, 200), rng(1).normal(1, 1, 200)])
    found = all_pairs(scores, rng())
    assert [each.verdict for each in found] == ["B > A", "B > A", "B > A"]
    assert [each.p_holm for each in found] == holm([each.p for each in found])
    assert [replace(found[0], p_holm=p).verdict for p in (0.049, 0.05, None)] == ["B > A", *["not resolved"] * 2]
    assert replace(found[0], difference=-0.1).verdict == "A > B"


def test_rows_of_a_prompt_are_drawn_together():
    # each score is there ten times: the interval is that of the prompts, not of the rows
    few = rng().normal(size=(2, 60))
    many = np.repeat(few, 10, axis=1)
    names = np.repeat(np.arange(60), 10).tolist()
    (alone,), (together,) = all_pairs(few, rng(1)), all_pairs(many, rng(1), clusters=names)
    assert (together.p, together.low, together.high) == pytest.approx((alone.p, alone.low, alone.high))
    (wrong,) = all_pairs(many, rng(1))
    assert wrong.high - wrong.low < 0.5 * (together.high - together.low)


# -- claims, simulated ------------------------------------------------------------------------------------------------


def test_a_model_against_itself_is_called_different_in_five_per_cent():
    # responses sampled twice from one model: prompts are hard or easy for both
    draw = rng(1)
    called = 0
    for _ in range(SIMULATIONS):
        prompt = draw.normal(size=100)
        (found,) = all_pairs(prompt + draw.normal(size=(2, 100)), draw, resamples=2)
        called += found.verdict != "not resolved"
    assert called <= MOST_OF_5


def test_no_pair_of_a_matrix_of_equal_models_is_called_different_in_95_per_cent():
    draw = rng(2)
    called = 0
    for _ in range(SIMULATIONS):
        found = all_pairs(draw.normal(size=50) + draw.normal(size=(5, 50)), draw, resamples=2)
        called += any(each.verdict != "not resolved" for each in found)
    assert called <= MOST_OF_5


def test_sixty_per_cent_against_fifty_is_found_with_500_prompts():
    draw = rng(3)
    won = draw.random((SIMULATIONS, 500)) < 0.6
    found = [all_pairs(np.stack([each * 1.0, np.full(500, 0.5)]), draw, resamples=2)[0] for each in won]
    assert np.mean([each.p < 0.05 and each.difference < 0 for each in found]) >= 0.95


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_over_seeds_covers_in_93_to_97_per_cent(seeds):
    # the model that it is stated for: each training is a normal draw about its method's mean, the prompts are these
    found = [between_seeds(each.tolist()) for each in 0.1 + 0.05 * rng(seeds).normal(size=(SIMULATIONS, seeds))]
    assert 0.93 <= np.mean([each.low <= 0.1 <= each.high for each in found]) <= 0.97


def test_sixty_per_cent_of_wins_side_by_side_are_found_with_500_prompts():
    draw = rng(5)
    signs = np.where(draw.random((SIMULATIONS, 1, 500)) < 0.6, 1.0, -1.0)
    found = [compare_pairs([(0, 1)], each, draw, resamples=2)[0] for each in signs]
    assert np.mean([each.p < 0.05 and each.difference > 0 for each in found]) >= 0.95


def test_the_smallest_difference_is_found_as_often_as_it_says():
    draw = rng(4)
    pilot = all_pairs(draw.normal(size=(2, 100_000)), draw, resamples=2)[0].smallest * np.sqrt(100_000 / 100)
    shift = np.array([[pilot], [0.0]])
    found = [all_pairs(shift + draw.normal(size=(2, 100)), draw, resamples=2)[0].p < 0.05 for _ in range(SIMULATIONS)]
    assert 0.77 <= np.mean(found) <= 0.83


@pytest.mark.parametrize(
    "prompts, rows", [(20, 1), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((40, 3), (120, 1)))]
)
def test_the_bootstraps_interval_covers_in_93_to_97_per_cent(prompts, rows):
    draw = rng(prompts + rows)
    # differences of two skewed scores; what a run makes of a prompt is shared by the prompt's rows
    shape = (2, SIMULATIONS, prompts, 1)
    a, b = draw.exponential(size=shape) + draw.exponential(0.5, size=(2, SIMULATIONS, prompts, rows))
    covered = 0
    for each in a - b:
        low, high = bootstrap(each.sum(axis=1)[:, None], np.full((prompts, 1), float(rows)), draw, 1000)
        covered += low[0] <= 0 <= high[0]
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_twenty_runs_on_a_thousand_prompts_take_seconds():
    scores = rng().normal(size=(20, 1000))
    began = time.process_time()
    assert len(all_pairs(scores, rng())) == 190
    assert time.process_time() - began < 5


# -- strengths --------------------------------------------------------------------------------------------------------


def test_strengths_of_two_players_are_the_log_odds():
    found = strengths(np.array([[0, 30], [10, 0]]))
    assert found.log_odds == pytest.approx([np.log(3) / 2, -np.log(3) / 2])
    assert found.comparable


def test_strengths_against_one_baseline_are_the_odds_of_each_win_rate():
    # players 1 and 2 only met player 0, ties counting half
    found = strengths(np.array([[0, 20.0, 50.5], [80.0, 0, 0], [49.5, 0, 0]]))
    against = found.log_odds[1:] - found.log_odds[0]
    assert 1 / (1 + np.exp(-against)) == pytest.approx([0.8, 0.495])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_strengths_are_the_maximum_of_the_likelihood(seed, players):
    draw = rng(seed)
    wins = draw.integers(1, 40, size=(players, players)) * (1.0 - np.eye(players))

    def likelihood(at):
        return (wins * -np.log1p(np.exp(at[None, :] - at[:, None]))).sum()

    found = strengths(wins).log_odds
    assert found.mean() == pytest.approx(0, abs=1e-9)
    for _ in range(10):
        assert likelihood(found + draw.normal(0, 0.05, players)) <= likelihood(found) + 1e-9
    # Zermelo's equations: everybody is expected to win as often as was won
    expected = ((wins + wins.T) / (1 + np.exp(found[None, :] - found[:, None]))).sum(axis=1)
    assert expected == pytest.approx(wins.sum(axis=1), rel=1e-6)


def test_who_always_won_has_no_number():
    found = strengths(np.array([[0, 5, 5], [0, 0, 3], [0, 2, 0]]))
    assert not found.comparable
    assert found.group[1] == found.group[2] != found.group[0]
    assert found.log_odds[1] - found.log_odds[2] == pytest.approx(np.log(3 / 2))
    with pytest.raises(ValueError, match="square"):
        strengths(np.ones((2, 3)))
