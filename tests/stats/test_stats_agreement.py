"""Krippendorff's alpha against the worked examples of his paper, and against its definition by enumeration."""

import itertools
import random

import pytest

from cdpo.stats.agreement import agreeing_pairs, alpha


def by_item(*observers: str) -> list[list[str]]:
    """Rows of labels, one per observer, `.` for a missing one, as the paper prints them."""
    return [[label for label in labels if label != "."] for labels in zip(*observers, strict=True)]


# K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011): sections A, B and C
BINARY = ("0100000010", "1110010000")
NOMINAL = ("aabbdcccedda", "babbbccceddd")
SEVERAL = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def test_the_paper_s_own_examples():
    assert alpha(by_item(*BINARY)) == pytest.approx(0.095, abs=5e-4)
    assert alpha(by_item(*NOMINAL)) == pytest.approx(0.692, abs=5e-4)
    assert alpha(by_item(*SEVERAL)) == pytest.approx(0.743, abs=5e-4)


def enumerated(items):
    """1 - D_o / D_e over all pairs of labels, as alpha is defined; no counts of coincidences."""
    paired = [labels for labels in items if len(labels) > 1]
    every = [label for labels in paired for label in labels]
    n = len(every)
    observed = sum((a != b) / (len(labels) - 1) for labels in paired for a, b in itertools.permutations(labels, 2)) / n
    expected = sum(a != b for a, b in itertools.permutations(every, 2)) / (n * (n - 1))
    return 1 - observed / expected


def test_alpha_is_its_definition():
    draw = random.Random(0)
    for _ in range(200):
        items = [[draw.choice("abc") for _ in range(draw.randrange(5))] for _ in range(12)]
        paired = {label for labels in items if len(labels) > 1 for label in labels}
        if len(paired) > 1:
            assert alpha(items) == pytest.approx(enumerated(items))


def test_what_is_not_defined_is_not_a_number():
    assert alpha([]) is None
    assert alpha([["a"], ["b"]]) is None  # nobody labelled the same item
    assert alpha([["a", "a"], ["a", "a"]]) is None  # nothing says what chance would make
    assert alpha([["a", "a"], ["b", "b"]]) == 1


def test_agreeing_pairs():
    assert agreeing_pairs("aa") == 1
    assert agreeing_pairs("ab") == 0
    assert agreeing_pairs("aab") == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="two"):
        agreeing_pairs("a")
