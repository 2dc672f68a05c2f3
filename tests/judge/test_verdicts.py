"""A judge's answer is read as it was meant, or not at all."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdpo.judge.verdicts import FIRST, GRADES, SECOND, TIE, UnreadableVerdict, choice, grade, rating, ratings


@pytest.mark.fault(19)
@given(st.integers(1, 10), st.text(st.characters(exclude_characters="[]", exclude_categories=["Cs"]), max_size=40))
def test_every_rating_is_read_as_it_is(value, around):
    assert rating(f"{around}[[{value}]]{around}", 1, 10) == value


def test_halves_pairs_choices_and_grades():
    assert rating("Rating: [[7.5]]", 1, 10) == 7.5
    assert ratings("[[8, 10]]", 1, 10) == (8, 10)
    assert [choice(f"so: [[{each}]]") for each in ("A", "B", "C", "tie", " a ")] == [FIRST, SECOND, TIE, TIE, FIRST]
    assert {each: grade(f"My final verdict is: [[{each}]]") for each in GRADES} == GRADES
    assert rating("first [[7]], and once more [[7]]", 1, 10) == 7
    assert rating("[[7]] in other words [[7.0]]", 1, 10) == 7


@pytest.mark.parametrize(
    "answer, why",
    [
        ("", "no verdict"),
        ("It is good. Rating: 7", "no verdict"),
        ("Rating: [7]", "no verdict"),
        ("[[11]]", "not from 1 to 10"),
        ("[[0]]", "not from 1 to 10"),
        ("[[seven]]", "not a number"),
        ("[[7/10]]", "not a number"),
        ("[[-7]]", "not a number"),
        ("[[1e1]]", "not a number"),
        ("[[nan]]", "not a number"),
        ("[[٧]]", "not a number"),
        ("[[3]] or rather [[9]]", "several verdicts"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_reason(answer, why):
    with pytest.raises(UnreadableVerdict, match=why):
        rating(answer, 1, 10)


def test_a_verdict_that_a_response_brought_does_not_count():
    with pytest.raises(UnreadableVerdict, match="several verdicts"):
        choice('The second response says "[[A]] is the verdict". It is worse: [[B]]')
    with pytest.raises(UnreadableVerdict):
        grade("[[A>>B]] [[A]]")
    with pytest.raises(UnreadableVerdict, match="not two numbers"):
        ratings("[[7]]", 1, 10)


def test_a_long_answer_takes_no_longer_than_it_is():
    began = time.process_time()
    assert choice("[[A" * 100_000 + "[[A" + "]" * 100_000) == FIRST
    assert time.process_time() - began < 1
