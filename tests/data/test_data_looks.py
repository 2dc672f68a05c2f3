"""What prep shows of a dataset: duplicates, overlap, lengths, length bias, and a row as the model reads it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdpo.data import measure as measuring
from cdpo.data.looks import end_token, lengths, looks, sample
from cdpo.data.measure import Tokens, measure
from cdpo.data.messages import assistant, user
from cdpo.data.preflight import usable_rows
from cdpo.data.tokens import encode_prompt
from tests.conftest import run_cdpo, write_project


def row(prompt: str, chosen: str | None = "wren", rejected: str | None = "oak") -> dict[str, Any]:
    turns = [None if text is None else [assistant(text)] for text in (chosen, rejected)]
    return {"prompt_id": prompt, "prompt": [user(prompt)], "chosen": turns[0], "rejected": turns[1]}


def test_rows_that_are_there_twice_and_prompts_that_are_evaluated_too() -> None:
    train = [row("a"), row("b"), row("a"), row("a", chosen="owl"), row("a")]
    found = looks({"train": train, "tune": [row("c")], "eval": [row("b", chosen="owl"), row("a"), row("a", "x")]})
    assert found["rows"] == {"train": 5, "tune": 1, "eval": 3}
    # of (a, wren, oak) there are four, one of them in eval
    assert found["repeated"] == 3
    assert found["shared_prompts"] == 2


def test_lengths_are_percentiles_and_bias_is_among_pairs_that_differ() -> None:
    draw = random.Random(0)
    tokens = [Tokens(draw.randrange(1, 50), draw.randrange(1, 9), draw.randrange(1, 9)) for _ in range(1001)]
    found = lengths([*tokens, None])
    for name, values in (
        ("prompt", [each.prompt for each in tokens]),
        ("response", [side for each in tokens for side in (each.chosen, each.rejected)]),
        ("row", [each.prompt + max(each.chosen or 0, each.rejected or 0) for each in tokens]),
    ):
        assert found[name] == [int(np.percentile(values, share, method="lower")) for share in (50, 95, 100)]
    longer = [each.chosen > each.rejected for each in tokens if each.chosen != each.rejected]  # type: ignore[operator]
    assert (found["chosen_longer"], found["differ"]) == (np.mean(longer), len(longer))
    assert lengths([Tokens(3, None, None)]) == {
        "prompt": [3, 3, 3],
        "response": None,
        "row": [3, 3, 3],
        "chosen_longer": None,
        "differ": 0,
        "unknown": 0.0,
    }
    assert lengths([Tokens(3, 4, 5, 3), Tokens(4, 4, 4, 0)])["unknown"] == 3 / 24


def test_a_sample_shows_what_is_learned(tiny_tokenizer: Any) -> None:
    text = sample(row("owl"), tiny_tokenizer)
    assert text.endswith("«wren <|end|>»")
    assert "owl" in text.partition("«")[0]
    assert end_token(tiny_tokenizer) == "<|end|>"
    assert "«" not in sample(row("owl", None, None), tiny_tokenizer)
    assert len(sample(row("owl " * 5000), tiny_tokenizer)) < 1300


def test_all_cores_count_what_one_does_and_what_training_does(tiny_tokenizer: Any, monkeypatch: Any) -> None:
    draw = random.Random(1)
    rows = [row("owl " * draw.randrange(1, 9), "wren " * draw.randrange(1, 9)) for _ in range(700)]
    rows += [row("owl", "wren <|end|> wren"), row("owl", None, None), row("owl", "wren", None)]
    alone = measure(rows, tiny_tokenizer)
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(measuring, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(measuring, "PART", 100)
    assert measure(rows, tiny_tokenizer, lambda done, total: told.append((done, total))) == alone
    assert told[-1] == (703, 703)
    assert len(told) == 8
    kept, report = usable_rows(rows[:700], tiny_tokenizer, 1000, 0.0)
    assert [Tokens(*(len(each[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))) for each in kept] == alone[
        :700
    ]
    assert report.longest == max(each.longest for each in alone[:700] if each)
    prompt = len(encode_prompt(tiny_tokenizer, [user("owl")]))
    assert alone[700:] == [None, Tokens(prompt, None, None), Tokens(prompt, 2, None)]


TASKS = """\
tag: page
pipelines: [SFT]
model: [tiny]
dataset: [./rows.jsonl]
tasks: [{pipeline: SFT, max_length: 12, max_dropped: 0.2}]
"""


@pytest.mark.slow
def test_prep_shows_the_page_and_keeps_it(tmp_path: Path) -> None:
    folder = write_project(tmp_path, TASKS)
    rows = [{"prompt": f"Name {at} birds", "chosen": "wren owl wren owl", "rejected": "oak"} for at in range(36)]
    rows += [{"prompt": f"Name {at} trees", "chosen": "oak " * 20, "rejected": "owl"} for at in range(3)]
    rows += rows[:1]
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    said = run_cdpo("prep", cwd=folder).stdout
    for wanted in (
        "./rows.jsonl for tiny: 34 train, 2 tune, 4 eval",
        "at most 12",
        "longer than max_length",
        "the chosen response is the longer one in 100% of",
        "a policy may learn length in place of quality",
        "WARNING: ",
        "of the tokens stand for text that this model's tokenizer does not know",
        "1 rows are there more than once",
        "a response ends with <|end|>",
        "  | <|bos|> <|user|> ",
    ):
        assert wanted in said, said
    (page,) = json.loads(next((folder / ".cdpo" / "preflight").iterdir()).read_text())
    assert page["repeated"] == 1
    # nothing is counted twice, for another file of tasks neither; what was lost is
    (kept,) = (folder / ".cdpo" / "lengths").iterdir()
    kept.write_text(kept.read_text().replace('"repeated": 1', '"repeated": 77'))
    (folder / "configs" / "other.yaml").write_text(TASKS.replace("tag: page", "tag: other"))
    again = run_cdpo("prep", "configs/other.yaml", cwd=folder).stdout
    page = said[said.index("./rows.jsonl for") : said.index("\n\n")]
    assert page.replace("  1 rows are there", "  77 rows are there") in again
    kept.write_text("{")
    assert page in run_cdpo("prep", cwd=folder).stdout
    assert '"repeated": 1,' in kept.read_text()


def test_too_many_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write_project(tmp_path, TASKS.replace(", max_dropped: 0.2", ""))
    rows = [{"prompt": f"Name {at} birds", "chosen": "wren " * 30, "rejected": "oak"} for at in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    said = run_cdpo("prep", cwd=folder, check=2).stderr
    assert "34 of 34 rows of 'train' are unusable for this model" in said


@pytest.mark.parametrize("share, biased", [(0.5, False), (0.66, True), (0.3, True)])
def test_a_bias_is_called_one(share: float, biased: bool) -> None:
    from cdpo.commands.preflight import preflight_lines

    tokens = {
        "prompt": [1, 1, 1],
        "response": [1, 1, 1],
        "row": [2, 2, 2],
        "chosen_longer": share,
        "differ": 100,
        "unknown": 0.01,
    }
    page = {"dataset": "d", "model": "m", "rows": {"train": 10}, "tokens": tokens, "max_length": 9, "dropped": {}}
    page |= {"repeated": 0, "shared_prompts": 0, "end_token": "</s>", "sample": "x"}
    said = "\n".join(preflight_lines([page] * 6, Path("x.json")))
    learned = "length" if share > 0.5 else "brevity"
    assert (f"{learned} in place of quality" in said) is biased
    assert "WARNING" not in said
    assert "2 more such pages in x.json" in said
