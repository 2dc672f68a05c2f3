"""Rows that a model cannot take are counted by cause and refused when they are many; nothing is cut."""

from typing import Any

import pytest

from cdpo.data.messages import assistant, user
from cdpo.data.preflight import usable_rows
from cdpo.data.tokens import encode
from cdpo.errors import StepError


def row(n: int, chosen: str = "wren", rejected: str = "oak") -> dict[str, Any]:
    return {
        "prompt_id": str(n),
        "prompt": [user("owl")],
        "chosen": [assistant(chosen)],
        "rejected": [assistant(rejected)],
    }


def test_rows_come_back_tokenised(tiny_tokenizer: Any) -> None:
    kept, report = usable_rows([row(0)], tiny_tokenizer, 100, 0.0)
    prompt_ids, chosen_ids = encode(tiny_tokenizer, [user("owl")], "wren")
    rejected_ids = encode(tiny_tokenizer, [user("owl")], "oak").response_ids
    assert kept == [
        {"prompt_id": "0", "prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids}
    ]
    assert (report.rows, report.longest, report.share) == (1, 6, 0.0)


def test_long_rows_are_counted_by_the_longer_response(tiny_tokenizer: Any) -> None:
    rows = [row(0), row(1, chosen="wren " * 5), row(2, rejected="oak " * 5), row(3, chosen="wren <|end|> wren")]
    kept, report = usable_rows(rows, tiny_tokenizer, 6, 0.75)
    assert [each["prompt_id"] for each in kept] == ["0"]
    assert report.summary() == {
        "max_length": 6,
        "rows": 4,
        "dropped": {"longer than max_length": 2, "spells a special token": 1},
        "longest": 10,
        "share": 0.75,
    }
    assert usable_rows(rows[:1], tiny_tokenizer, 6, 0.0)[0], "a row of exactly max_length fits"


def test_too_many_are_refused_with_counts_and_the_way_out(tiny_tokenizer: Any) -> None:
    rows = [*(row(n) for n in range(18)), row(18, chosen="wren " * 5), row(19, rejected="oak " * 7)]
    assert len(usable_rows(rows, tiny_tokenizer, 6, 0.1)[0]) == 18
    with pytest.raises(StepError) as caught:
        usable_rows(rows, tiny_tokenizer, 6, 0.05, split="tune")
    assert "2 of 20 rows of 'tune' are unusable for this model: 2 longer than max_length" in str(caught.value)
    assert "the longest row has 12 tokens" in str(caught.value)
    assert "raise max_dropped" in str(caught.value)
    with pytest.raises(StepError, match="2 of 2 rows"):
        usable_rows(rows[18:], tiny_tokenizer, 6, 1.0)
    with pytest.raises(StepError, match="0 of 0 rows"):
        usable_rows([], tiny_tokenizer, 6, 1.0)
