"""The playground: its gold reward is what its formula says, and its offline data are what they claim to be."""

import itertools
import math
import random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdpo.data import playground
from cdpo.data.messages import user
from cdpo.data.playground import LABEL_TEMPERATURE, NUMBERS, TOPIC_OF, TOPICS, best, gold, make, parse, vocabulary
from cdpo.errors import StepError

SIZES = {"train": 2000, "tune": 200, "evaluation": 500}


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    return make(**SIZES, seed=42)


def ask(text: str) -> list[dict[str, str]]:
    return [user(text)]


def test_twelve_topics_of_twelve_words_all_different() -> None:
    assert len(TOPICS) == 12
    assert all(len(words) == 12 for words in TOPICS.values())
    assert len(set(vocabulary())) == len(vocabulary()) == 3 + 4 + 12 + 144


@pytest.mark.parametrize(
    "response, expected",
    [
        ("heron kestrel adze", 1.0),
        ("heron lark adze", (1 + 0.6 + 1) / 3),
        ("robin heron adze", (0.3 + 1 + 1) / 3),
        ("heron heron adze", (1 - 0.5 + 1) / 3),
        ("heron crow adze", (1 - 0.5 + 1) / 3),
        ("adze heron kestrel", (-0.5 + 1 - 0.5) / 3),
        ("heron kestrel", 2 / 3),
        ("heron kestrel adze awl", (3 - 0.5) / 3),
        ("heron kestrel Adze", (2 - 0.5) / 3),
        ("  heron\tkestrel\nadze ", 1.0),
        ("", 0.0),
        ("no such words in here at all my friend", -1.0),
    ],
)
def test_gold_by_hand(response: str, expected: float) -> None:
    assert gold(ask("list two birds then one tools without crow"), response) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from(vocabulary()), max_size=20).map(" ".join))
def test_any_text_has_a_gold_in_its_range(response: str) -> None:
    assert -1 <= gold(ask("list four fruits then one games without fig"), response) <= 1


def test_nothing_beats_the_best() -> None:
    """Against all ordered choices of words of the two topics, the forbidden one and a foreign one included."""
    prompt = ask("list two birds then one tools without heron")
    words = [*TOPICS["birds"], *TOPICS["tools"], "oak"]
    answers = itertools.chain.from_iterable(itertools.product(words, repeat=length) for length in range(4))
    top = max(gold(prompt, " ".join(answer)) for answer in answers)
    assert gold(prompt, best(prompt)) == top == 1.0
    assert gold(ask("list four birds then one tools without heron"), best(prompt)) < 1
    four = ask("list four birds then one tools without crow")
    assert gold(four, best(four)) == pytest.approx((3 + 0.6 + 1) / 5)


@pytest.mark.parametrize("text", ["", "hello", "list two birds", "list five birds then one tools without crow"])
def test_gold_is_defined_on_the_playgrounds_prompts_only(text: str) -> None:
    with pytest.raises(StepError, match="own prompts"):
        gold(ask(text), "owl")


def test_the_same_seed_gives_the_same_rows(rows: dict[str, list[dict]]) -> None:
    assert make(**SIZES, seed=42) == rows
    assert make(**SIZES, seed=43)["train"] != rows["train"]


def test_a_larger_train_split_leaves_the_others_as_they_were(rows: dict[str, list[dict]]) -> None:
    more = make(train=2100, tune=200, evaluation=500, seed=42)
    assert (more["eval"], more["tune"], more["train"][:2000]) == (rows["eval"], rows["tune"], rows["train"])


def test_all_prompts_are_distinct_and_no_pair_is_identical(rows: dict[str, list[dict]]) -> None:
    texts = [row["prompt"][0]["content"] for split in rows.values() for row in split]
    assert len(set(texts)) == len(texts) == sum(SIZES.values())
    assert all(row["chosen"] != row["rejected"] for split in rows.values() for row in split)


def test_gold_columns_are_the_gold_of_the_responses(rows: dict[str, list[dict]]) -> None:
    for row in rows["tune"]:
        assert row["gold_chosen"] == gold(row["prompt"], row["chosen"][0]["content"])
        assert row["gold_rejected"] == gold(row["prompt"], row["rejected"][0]["content"])


def test_labels_follow_bradley_terry(rows: dict[str, list[dict]]) -> None:
    """By bins of the gold difference, the better response is chosen as often as the model says, within 4 sigma."""
    by_bin: dict[int, list[tuple[float, bool]]] = {}
    for row in rows["train"]:
        difference = abs(row["gold_chosen"] - row["gold_rejected"])
        if difference > 0:
            p = 1 / (1 + math.exp(-difference / LABEL_TEMPERATURE))
            by_bin.setdefault(int(p * 10), []).append((p, row["gold_chosen"] > row["gold_rejected"]))
    assert set(by_bin) == {5, 6, 7, 8, 9}
    for labels in by_bin.values():
        expected = sum(p for p, _ in labels)
        sigma = math.sqrt(sum(p * (1 - p) for p, _ in labels))
        assert abs(sum(won for _, won in labels) - expected) < 4 * sigma


def test_offline_responses_do_not_cover_what_is_good(rows: dict[str, list[dict]]) -> None:
    """The figures of the module's docstring."""
    train = rows["train"]
    tops = [gold(row["prompt"], best(row["prompt"])) for row in train]
    rng = random.Random(0)
    words = list(TOPIC_OF)
    at_random = [gold(row["prompt"], " ".join(rng.choice(words) for _ in parse(row["prompt"]).topics)) for row in train]
    assert mean(tops) == pytest.approx(0.97, abs=0.01)
    assert mean(row["gold_chosen"] for row in train) == pytest.approx(0.41, abs=0.01)
    assert mean(row["gold_rejected"] for row in train) == pytest.approx(0.17, abs=0.01)
    assert mean(at_random) == pytest.approx(-0.42, abs=0.02)
    near = [max(row["gold_chosen"], row["gold_rejected"]) >= 0.9 * top for row, top in zip(train, tops, strict=True)]
    assert sum(near) == 3


def test_what_is_asked_for_reads_back() -> None:
    request = parse(ask("list two birds then one tools without crow"))
    assert request == playground.Request(("birds", "birds", "tools"), "crow")
    assert len(NUMBERS) == 4


def test_too_many_prompts_are_refused() -> None:
    with pytest.raises(StepError, match="at most 25344"):
        make(train=30_000, tune=1, evaluation=1, seed=0)
