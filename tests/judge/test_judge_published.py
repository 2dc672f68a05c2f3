"""Figures of published benchmarks, from the verdicts that were published with them; and by hand."""

import csv
import gzip
import json
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from cdpo.judge.agreement import agreement, both_orders, majority, pair_verdict
from cdpo.judge.benchmarks import alpaca_eval, arena_hard, mt_bench, weighted_preference
from cdpo.judge.verdicts import FIRST, GRADES, SECOND, TIE, UnreadableVerdict, grade, rating
from cdpo.stats.strengths import strengths
from tests.conftest import DATA

real = pytest.mark.skipif(not (DATA / "alpaca_eval").exists(), reason="no real data beside the project")
ALPACA = ("gemma-2b-it", "alpaca-7b", "FuseChat-Llama-3.2-1B-Instruct")


def lines(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as stream:
        return [json.loads(line) for line in stream]


@real
@pytest.mark.parametrize("model", ALPACA)
def test_alpaca_eval_equals_the_leaderboard(model):
    rows = lines(DATA / "alpaca_eval" / f"{model}.jsonl.gz")
    with open(DATA / "alpaca_eval" / "leaderboard_weighted_gpt4_turbo.csv", newline="") as stream:
        published = next(row for row in csv.DictReader(stream) if row[""] == model)
    found = alpaca_eval([row["preference"] for row in rows])
    assert found.win_rate == pytest.approx(float(published["win_rate"]), abs=1e-9)
    assert found.standard_error == pytest.approx(float(published["standard_error"]), abs=1e-9)
    assert found.discrete_win_rate == pytest.approx(float(published["discrete_win_rate"]), abs=1e-9)
    counts = [int(float(published[name])) for name in ("n_wins", "n_wins_base", "n_draws")]
    assert [found.wins, found.losses, found.draws] == counts


# the third one's log-probabilities were not kept
@real
@pytest.mark.parametrize("model", ALPACA[:2])
def test_preferences_are_those_of_the_log_probabilities(model):
    seen = 0
    for row in lines(DATA / "alpaca_eval" / f"{model}.jsonl.gz"):
        if row["raw_completion"] is None:  # what the judge said was not kept
            continue
        top = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
        second = weighted_preference({each["token"]: each["logprob"] for each in top})
        # which of the two was shown first is not written down
        assert min(abs(1 + second - row["preference"]), abs(2 - second - row["preference"])) < 1e-6
        seen += 1
    assert seen > 790


@real
@pytest.mark.parametrize(
    "model, published, missing", [("gemma-2-9b-it-sppo-iter-0", 8.566, 1), ("mistral-7b-instruct-v0.2", 7.694, 0)]
)
def test_mt_bench_from_the_judges_answers(model, published, missing):
    read = []
    for row in lines(DATA / "mt_bench" / "judgments" / f"{model}.jsonl"):
        try:
            value = rating(row["judgment"], 1, 10)
        except UnreadableVerdict:
            value = None
        assert (-1 if value is None else value) == row["score"]
        read.append(value)
    found = mt_bench(read)
    assert (round(found.mean, 3), found.n, found.missing) == (published, 160 - missing, missing)


@real
def test_arena_hard_from_the_judges_answers():
    grades, prompts = [], []
    for row in lines(DATA / "arena_hard" / "gemma-1.1-2b-it.first31.judgment.jsonl"):
        for at, game in enumerate(row["games"]):
            assert grade(game["judgment"]) == GRADES[game["score"]]
            # the model is B in the first game and A in the second
            grades.append(grade(game["judgment"]) * (1 if at else -1))
            prompts.append(row["question_id"])
    found = arena_hard(grades, prompts, np.random.default_rng(0))
    assert found.score == pytest.approx(2.333, abs=5e-4)
    assert found.low < found.score < found.high
    assert (found.games, found.missing) == (62, 0)
    # Bradley and Terry's win rate against one baseline is the weighted mean
    weights = [3 if abs(each) == 2 else 1 for each in grades]
    won = sum(weight * (each > 0) + weight * (each == 0) / 2 for each, weight in zip(grades, weights, strict=True))
    odds = strengths(np.array([[0, won], [sum(weights) - won, 0]])).log_odds
    assert 100 / (1 + np.exp(odds[1] - odds[0])) == pytest.approx(found.score)


@real
def test_pandalm_by_counts():
    rows = json.loads((DATA / "pandalm" / "testset_v1.json").read_text())
    labels = [[row[f"annotator{at}"] for at in (1, 2, 3)] for row in rows]
    # counted with jq: each pattern of three labels, sorted, and from them the majorities
    assert Counter(map(majority, labels)) == {2: 472, 1: 422, 0: 105}
    assert agreement([each[0] for each in labels], [each[1] for each in labels]) == 912 / 999


def test_majority_is_more_than_half():
    assert majority([1, 1, 2]) == 1
    assert majority([0, 1, 2]) is None
    assert majority([1, 2]) is None
    assert majority([]) is None


def test_what_is_missing_is_left_out_and_counted():
    assert mt_bench([None, 4.0, 8.0]) == mt_bench([4.0, None, 8.0])
    assert mt_bench([None, 4.0, 8.0]).mean == 6
    found = alpaca_eval([1.0, None, 2.0, 1.5])
    assert (found.win_rate, found.wins, found.losses, found.draws, found.missing) == (50, 1, 1, 1, 1)
    assert found.standard_error == pytest.approx(100 * stats.sem([0, 1, 0.5]))
    played = arena_hard([2, None, -1, 0], ["x", "x", "y", "y"], np.random.default_rng(0))
    assert (played.score, played.games, played.missing) == (100 * 3.5 / 5, 3, 1)


def test_nothing_is_made_of_nothing():
    for wrong in (lambda: mt_bench([None]), lambda: alpaca_eval([1.2]), lambda: alpaca_eval([0.9, 1.0])):
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(ValueError, match="no game"):
        arena_hard([None], ["x"], np.random.default_rng(0))
    with pytest.raises(UnreadableVerdict):
        weighted_preference({"The": -0.1})
    assert weighted_preference({"M": -5.0, "The": -0.01}) == 1.0


def test_position_bias_is_told_from_preference():
    straight = [FIRST, FIRST, FIRST, SECOND, TIE, None]
    swapped = [SECOND, FIRST, TIE, SECOND, TIE, FIRST]
    found = both_orders(straight, swapped)
    assert (found.pairs, found.missing) == (5, 1)
    assert (found.consistent, found.prefers_first, found.prefers_second) == (2 / 5, 1 / 5, 1 / 5)
    verdicts = [pair_verdict(a, b) for a, b in zip(straight[:5], swapped[:5], strict=True)]
    assert verdicts == [FIRST, TIE, FIRST, TIE, TIE]
