"""Dataset rules: raw rows as the sources have them, and everything that is no usable preference, by cause."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdpo.data.messages import assistant, user
from cdpo.data.own_rule import own_rule
from cdpo.data.rules import FORMATS, RULES, Drop, FieldError, detect, parse_dialogue
from cdpo.errors import StepError


def pair(prompt: list[Any], chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}


ASK = [user("Name a bird")]
TALK = [user("Hi"), assistant("Hello"), user("Name a bird")]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"prompt": "Name a bird", "chosen": "owl", "rejected": "oak"}, pair(ASK, "owl", "oak")),
        ({"prompt": ASK, "chosen": [assistant("owl")], "rejected": [assistant("oak")]}, pair(ASK, "owl", "oak")),
        (
            {"chosen": [*TALK, assistant("owl")], "rejected": [*TALK, assistant("oak")]},
            pair(TALK, "owl", "oak"),
        ),
        (
            {"prompt": "Name a bird", "chosen": [*TALK, assistant("owl")], "rejected": [*TALK, assistant("oak")]},
            pair(TALK, "owl", "oak"),
        ),
        (
            {"prompt": None, "chosen": [*ASK, {**assistant("owl"), "id": 3}], "rejected": [*ASK, assistant("oak")]},
            pair(ASK, "owl", "oak"),
        ),
        ({"prompt": "Name a bird", "chosen": "owl", "rejected": " owl\n"}, Drop("identical pair")),
        ({"prompt": "Name a bird", "chosen": "owl", "rejected": " \n"}, Drop("empty response")),
        ({"prompt": "  ", "chosen": "owl", "rejected": "oak"}, Drop("empty prompt")),
        ({"prompt": TALK[:2], "chosen": "owl", "rejected": "oak"}, Drop("prompt does not end in a user turn")),
        (
            {"chosen": [*TALK, assistant("owl")], "rejected": [*ASK, assistant("oak")]},
            Drop("chosen and rejected differ before the last response"),
        ),
        (
            {"prompt": "Name a tree", "chosen": [*TALK, assistant("owl")], "rejected": [*TALK, assistant("oak")]},
            Drop("prompt differs from the conversations' own"),
        ),
    ],
)
def test_preference(row: dict[str, Any], expected: Any) -> None:
    assert RULES["preference"](row) == expected


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a", "chosen": "b"}, "no 'rejected'; there are: prompt, chosen"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "'rejected': is null"),
        ({"prompt": "a", "chosen": 7, "rejected": "c"}, "'chosen': expected a text, got 7"),
        ({"chosen": "b", "rejected": "c"}, "no 'prompt'"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "'chosen': expected a non-empty list of messages, got []"),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, 'message 1 is "b", not an object'),
        (
            {"prompt": [{"role": "bot", "content": "x"}], "chosen": "b", "rejected": "c"},
            'has the role "bot"; roles are',
        ),
        ({"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}, "message 1: content: is null"),
        ({"prompt": "a", "chosen": [user("b")], "rejected": "c"}, "the last message is the user's"),
        ({"prompt": "a\ud800", "chosen": "b", "rejected": "c"}, "half of a surrogate pair at character 2"),
    ],
)
def test_malformed_fields_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError) as caught:
        RULES["preference"](row)
    assert message in str(caught.value)


def hh(*turns: str) -> str:
    speakers = ("Human", "Assistant")
    return "".join(f"\n\n{speakers[at % 2]}: {said}" for at, said in enumerate(turns))


def test_hh_dialogues_become_messages() -> None:
    row = {"chosen": hh("Hi", "Hello", "Name a bird", "owl"), "rejected": hh("Hi", "Hello", "Name a bird", "oak")}
    assert RULES["AH"](row) == pair(TALK, "owl", "oak")


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    "chosen, rejected, cause",
    [
        (hh("a", "b"), hh("a", "b"), "identical pair"),
        (hh("a", "b"), hh("a", " "), "empty response"),
        (hh("a", "b"), hh("x", "c"), "chosen and rejected differ before the last response"),
        (hh("a", "b", "c", "d"), hh("a", "d"), "chosen and rejected differ before the last response"),
        (hh("a", "b", "c"), hh("a", "b"), "dialogue does not end in the assistant's turn"),
        (hh("a", "b") + "\n\nAssistant: c", hh("a", "b") + "\n\nAssistant: d", "prompt does not end in a user turn"),
    ],
)
def test_hh_rows_that_are_no_preference(chosen: str, rejected: str, cause: str) -> None:
    assert RULES["AH"]({"chosen": chosen, "rejected": rejected}) == Drop(cause)


def test_hh_turns_of_one_speaker_in_a_row_are_joined() -> None:
    before = hh("a", "b") + "\n\nAssistant: c" + hh("d")
    made = RULES["AH"]({"chosen": before + "\n\nAssistant: e", "rejected": before + "\n\nAssistant: f"})
    assert made == pair([user("a"), assistant("b\n\nc"), user("d")], "e", "f")


def test_hh_names_a_dialogue_that_is_none() -> None:
    with pytest.raises(FieldError, match="'chosen': a dialogue begins with"):
        RULES["AH"]({"chosen": "Human: a", "rejected": hh("a", "b")})


#: what a speaker may say without opening a turn
said = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: "\n\nHuman:" not in f"\n\n{text}" and "\n\nAssistant:" not in f"\n\n{text}"
)


@settings(max_examples=200, deadline=None)
@given(st.lists(said, min_size=1, max_size=5))
def test_any_dialogue_parses_back(turns: list[str]) -> None:
    messages = parse_dialogue(hh(*turns))
    assert [each["content"] for each in messages] == [turn.strip() for turn in turns]
    assert [each["role"] for each in messages] == ["user", "assistant", "user", "assistant", "user"][: len(turns)]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(RULES)),
    st.dictionaries(
        st.sampled_from(sorted({name for rule in RULES.values() for name in (*rule.columns, *rule.optional)})),
        st.recursive(
            st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=10) | said.map(hh),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(st.sampled_from(["role", "content", "text", "response", "overall_score"]), inner)
            ),
            max_leaves=6,
        ),
    ),
)
def test_any_row_gives_a_pair_a_drop_or_a_named_field(name: str, row: dict[str, Any]) -> None:
    try:
        made = RULES[name](row)
    except FieldError:
        return
    if not isinstance(made, Drop):
        assert made["prompt"][-1]["role"] == "user"
        texts = [made[side][0]["content"].strip() for side in ("chosen", "rejected") if made[side] is not None]
        assert len(texts) == len(set(texts)) == len(FORMATS.get(name, ("chosen", "rejected")))


SAFE = {"prompt": "p", "response_0": "r0", "response_1": "r1", "better_response_id": 1, "safer_response_id": 0}


def test_safe_rlhf() -> None:
    assert RULES["PP"](SAFE) == pair([user("p")], "r1", "r0")
    assert RULES["PM"](SAFE) == pair([user("p")], "r0", "r1")
    assert RULES["PP"]({**SAFE, "response_0": "r1"}) == Drop("identical pair")
    with pytest.raises(FieldError, match="'better_response_id': expected 0 or 1, got 2"):
        RULES["PP"]({**SAFE, "better_response_id": 2})


def ultra(*scores: Any) -> dict[str, Any]:
    completions = [{"response": f"r{at}", "overall_score": score} for at, score in enumerate(scores)]
    return {"instruction": "i", "completions": completions}


def test_safe_rlhf_tells_which_response_is_safe() -> None:
    row = {**SAFE, "is_response_0_safe": True, "is_response_1_safe": False}
    assert RULES["PP"](row) == {**pair([user("p")], "r1", "r0"), "chosen_is_safe": False, "rejected_is_safe": True}
    assert RULES["PM"](row) == {**pair([user("p")], "r0", "r1"), "chosen_is_safe": True, "rejected_is_safe": False}
    with pytest.raises(FieldError, match="'is_response_1_safe': expected true or false, got 1"):
        RULES["PM"]({**row, "is_response_1_safe": 1})


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"prompt": "Name a bird", "completion": "owl"}, (ASK, "owl")),
        ({"prompt": TALK, "completion": [assistant("owl")]}, (TALK, "owl")),
        ({"messages": [*TALK, assistant("owl")], "prompt": "not read"}, (TALK, "owl")),
        ({"messages": TALK}, Drop("conversation does not end in the assistant's turn")),
        ({"messages": [assistant("owl")]}, Drop("empty prompt")),
        ({"prompt": "Name a bird", "completion": " "}, Drop("empty response")),
        ({"prompt": TALK[:2], "completion": "owl"}, Drop("prompt does not end in a user turn")),
    ],
)
def test_responses_to_imitate(row: dict[str, Any], expected: Any) -> None:
    if not isinstance(expected, Drop):
        expected = {"prompt": expected[0], "chosen": [assistant(expected[1])], "rejected": None}
    assert RULES["sft"](row) == expected


def test_prompts_alone() -> None:
    assert RULES["prompts"]({"prompt": "Name a bird"}) == {"prompt": ASK, "chosen": None, "rejected": None}
    assert RULES["prompts"]({"prompt": TALK}) == {"prompt": TALK, "chosen": None, "rejected": None}
    assert RULES["prompts"]({"prompt": " "}) == Drop("empty prompt")
    with pytest.raises(FieldError, match="'prompt': is null"):
        RULES["prompts"]({"prompt": None})


@pytest.mark.parametrize(
    "row, rule",
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score": 1}, "preference"),
        ({"chosen": [*ASK, assistant("owl")], "rejected": [*ASK, assistant("oak")]}, "preference"),
        ({"chosen": hh("a", "b"), "rejected": hh("a", "c")}, "AH"),
        ({"prompt": "a", "completion": "b"}, "sft"),
        ({"messages": TALK}, "sft"),
        ({"prompt": "a", "source": "web"}, "prompts"),
        (ultra(1, 2, 3, 4), "U"),
        ({"info": {}, "summaries": [], "choice": 0, "worker": "w"}, "OS"),
        ({"question": "q", "answer_0": "a", "answer_1": "b", "score_0": 0, "score_1": 1}, "OW"),
    ],
)
def test_the_format_is_told_by_the_columns(row: dict[str, Any], rule: str) -> None:
    assert detect(row) == rule


@pytest.mark.parametrize(
    "row, said",
    [
        ({"text": "a"}, r"its columns \('text'\) are those of no format that is known by sight"),
        ({}, r"its columns \(none\)"),
        (SAFE, "fit several rules: write `rule: PP` or `rule: PM`"),
    ],
)
def test_columns_that_tell_no_format(row: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError, match=said):
        detect(row)


@pytest.mark.fault(16)
def test_ultrafeedback() -> None:
    made = RULES["U"](ultra(5, 8.5, 3, 8.5))
    assert made == {**pair([user("i")], "r1", "r2"), "score_chosen": 8.5, "score_rejected": 3.0}
    assert RULES["U"](ultra(5, 5.0, 5, 5)) == Drop("tie")
    assert RULES["U"](ultra(5, 4, 3)) == Drop("not four completions")
    for score in (None, "7", float("nan"), True):
        with pytest.raises(FieldError, match="'completions' 2: 'overall_score': expected a finite number"):
            RULES["U"](ultra(5, score, 3, 1))


def test_summaries() -> None:
    row = {
        "info": {"subreddit": "tifu", "title": "T", "post": "P"},
        "summaries": [{"text": "s0"}, {"text": "s1"}],
        "choice": 1,
    }
    prompt = "SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: P\n\nTL;DR:"
    assert RULES["OS"](row) == pair([user(prompt)], "s1", "s0")
    assert RULES["OS"]({**row, "info": {"post": None, "article": "A"}}) == Drop("no Reddit post")
    with pytest.raises(FieldError, match="'summaries' 2: no 'text'"):
        RULES["OS"]({**row, "summaries": [{"text": "s0"}, {}]})


@pytest.mark.fault(16)
def test_webgpt() -> None:
    row = {"question": {"full_text": "q"}, "answer_0": "a0", "answer_1": "a1", "score_0": -1.0, "score_1": 1.0}
    made = RULES["OW"](row)
    assert made == {**pair([user("q")], "a1", "a0"), "score_chosen": 1.0, "score_rejected": -1.0}
    assert RULES["OW"]({**row, "score_1": -1.0}) == Drop("tie")


OWN = """
def fn(row):
    kind = row["kind"]
    one = {"prompt": "p", "chosen": "c", "rejected": "r", "note": 3}
    return {"one": one, "none": None, "two": [one, {**one, "chosen": "r"}], "bad": 7, "short": {"prompt": "p"},
            "number": {**one, "chosen": 1}}[kind]
"""


def test_a_users_own_rule(tmp_path: Any) -> None:
    path = tmp_path / "my.py"
    path.write_text(OWN)
    rule = own_rule(f"{path}:fn")
    one = {**pair([user("p")], "c", "r"), "note": 3}
    assert rule({"kind": "one"}) == [one]
    assert rule({"kind": "two"}) == [one, Drop("identical pair")]
    assert rule({"kind": "none"}) == [Drop("dropped by the rule")]
    for kind, message in (
        ("bad", "my.py:fn returned 7, and not a dict with prompt, chosen and rejected"),
        ("short", "and not a dict with prompt, chosen and rejected"),
        ("number", "my.py:fn returned a wrong 'chosen': expected a text, got 1"),
        ("what", "my.py:fn failed: KeyError: 'what' (line 5 of my.py, in fn)"),
    ):
        with pytest.raises(StepError) as caught:
            rule({"kind": kind})
        assert message in str(caught.value)
