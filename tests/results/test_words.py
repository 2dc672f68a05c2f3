"""Word-level differences: against a plain table, on what is hard, and in bounded time."""

import random
import time
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdpo.report.words import DELETE, INSERT, SAME, _common, difference, share_different


def longest(a, b):
    @lru_cache(None)
    def length(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + length(i + 1, j + 1)
        return max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


def test_a_word_in_the_middle():
    found = difference("the red cat sat down.", "the black cat sat down.")
    assert found.a == [(SAME, "the "), (DELETE, "red"), (SAME, " cat sat down.")]
    assert found.b == [(SAME, "the "), (INSERT, "black"), (SAME, " cat sat down.")]
    assert (found.deleted, found.inserted) == (1, 1)


def test_a_mark_alone_and_characters_of_a_script_without_spaces():
    assert difference("yes.", "yes!").b == [(SAME, "yes"), (INSERT, "!")]
    assert difference("我喜欢猫", "我喜欢狗").b == [(SAME, "我喜欢"), (INSERT, "狗")]


def test_white_space_counts_for_nothing():
    found = difference("one two", "  one\n\ttwo ")
    assert found.a == [(SAME, "one two")]
    assert found.b == [(SAME, "  one\n\ttwo ")]


def test_a_single_word_amid_other_text_is_no_common_one():
    found = difference("alpha beta the gamma delta", "one two the three four")
    assert found.b == [(INSERT, "one two the three four")]
    kept = difference("alpha one two three four beta", "gamma one two three four delta")
    assert (SAME, " one two three four ") in kept.a


@pytest.mark.parametrize("a, b", [("", ""), ("", "one"), ("one", ""), (" \n ", ""), ("\u202e\x1b[31m", "$$")])
def test_texts_without_words(a, b):
    found = difference(a, b)
    assert "".join(text for _, text in found.a) == a
    assert "".join(text for _, text in found.b) == b


@given(st.text("ab .\n", max_size=40), st.text("ab .\n", max_size=40))
def test_the_pieces_are_the_texts_and_what_is_the_same_is_in_both(a, b):
    found = difference(a, b)
    for pieces, text in ((found.a, a), (found.b, b)):
        assert "".join(each for _, each in pieces) == text
    same = ["".join("".join(text for kind, text in each if kind == SAME).split()) for each in (found.a, found.b)]
    assert same[0] == same[1]


@given(st.text("abc", max_size=25), st.text("abc", max_size=25))
def test_the_common_sequence_is_a_longest_one(a, b):
    found = _common(a, b)
    assert [a[i] for i, _ in found] == [b[j] for _, j in found]
    assert found == sorted(set(found))
    assert len(found) == longest(a, b)


def test_time_is_bounded():
    """The worst that is compared: two long texts of the same few words in disorder; twice that is not compared."""
    draw = random.Random(0)
    a, b = (" ".join(draw.choices("abcd", k=5000)) for _ in range(2))
    began = time.process_time()
    assert difference(a, b) is not None
    assert time.process_time() - began < 1.0
    began = time.process_time()
    assert difference(a + " " + a, b + " " + b) is None
    assert difference(a * 200 + " x", a * 200 + " y") is not None  # a megabyte each, but one word
    assert time.process_time() - began < 8.0


def test_how_much_is_different():
    assert share_different("a b c", "c b a a") == 0
    assert share_different("a b", "c d") == 1
    assert share_different("a b", "b c") == 0.5
    assert share_different("", "") == 0


def test_a_match_as_long_as_the_changes_beside_it_is_given_up():
    found = difference("a x b", "c x d")
    assert (found.deleted, found.inserted) == (3, 3)
    kept = difference("a x y b", "c x y d")
    assert (kept.deleted, kept.inserted) == (2, 2)
