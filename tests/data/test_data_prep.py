"""PREP: what it keeps, drops, refuses; splits by prompt; the same bytes for the same rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cdpo.data.messages import canonical, prompt_id, user
from cdpo.data.prepared import SPLITS, read_split, with_ids, write_split
from cdpo.errors import StepError
from cdpo.files import file_sha256, read_json
from cdpo.pipelines import prep
from cdpo.step import Device, Step

Prepare = Callable[..., Path]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Run PREP on files; returns its out/."""
    count = iter(range(100))

    def run(params: dict[str, Any], **inputs: Any) -> Path:
        work = tmp_path / f"work{next(count)}"
        (work / "out").mkdir(parents=True)
        named = {role: value if isinstance(value, str) else [str(value)] for role, value in inputs.items()}
        step = Step("PREP", "k" * 64, "data", params, named, None, Device(), work)
        prep.run(step)
        return step.out

    return run


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}", "weight": n}
        for n in range(start, start + count)
    ]


def write(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def digests(out: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(out.iterdir())}


PREFERENCE = {"rule": "preference"}


def test_rows_become_messages_with_the_sources_other_columns(prepare: Prepare, tmp_path: Path) -> None:
    out = prepare(PREFERENCE, source=write(tmp_path / "a.jsonl", rows(100)))
    splits = {split: read_split(out, split) for split in SPLITS}
    assert {split: len(each) for split, each in splits.items()} == {"train": 85, "tune": 5, "eval": 10}
    row = splits["tune"][0]
    n = row["weight"]
    assert row == {
        "prompt_id": prompt_id([user(f"question {n}")]),
        "prompt": [user(f"question {n}")],
        "chosen": [{"role": "assistant", "content": f"good {n}"}],
        "rejected": [{"role": "assistant", "content": f"bad {n}"}],
        "weight": n,
    }
    assert sorted(each["weight"] for split in splits.values() for each in split) == list(range(100))
    report = read_json(out / "report.json")
    assert report["read"] == {"source": 100}
    assert report["kept"] == {"train": 85, "tune": 5, "eval": 10}
    assert report["dropped"] == {}


def test_the_same_rows_give_the_same_bytes_in_any_order(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", rows(60))
    out = prepare(PREFERENCE, source=source)
    assert digests(out) == digests(prepare(PREFERENCE, source=source))
    backwards = prepare(PREFERENCE, source=write(tmp_path / "b.jsonl", rows(60)[::-1]))
    assert digests(backwards) == digests(out)
    other = prepare({**PREFERENCE, "seed": 43}, source=source)
    assert digests(other)["eval.parquet"] != digests(out)["eval.parquet"]


def test_no_prompt_is_in_two_splits(prepare: Prepare, tmp_path: Path) -> None:
    repeated = [{**row, "prompt": f"question {row['weight'] // 5}"} for row in rows(300)]
    out = prepare({**PREFERENCE, "tune_ratio": 0.2}, source=write(tmp_path / "a.jsonl", repeated))
    prompts = [{canonical(row["prompt"]) for row in read_split(out, split)} for split in SPLITS]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 60
    assert [len(read_split(out, split)) for split in SPLITS] == [210, 60, 30]
    ids = [row["prompt_id"] for row in read_split(out, "eval")]
    assert len(set(ids)) == len(ids) == 30
    assert sorted({each.partition(".")[2] for each in ids}) == ["", "1", "2", "3", "4"]


@pytest.mark.fault(17)
def test_a_limit_is_drawn_from_everywhere(prepare: Prepare, tmp_path: Path) -> None:
    out = prepare({**PREFERENCE, "limit": 100}, source=write(tmp_path / "a.jsonl", rows(1000)))
    weights = [row["weight"] for split in SPLITS for row in read_split(out, split)]
    assert len(weights) == 100
    assert 350 < sum(weights) / 100 < 650
    assert max(weights) > 900


def test_a_source_with_its_own_evaluation_files(prepare: Prepare, tmp_path: Path) -> None:
    train, own = write(tmp_path / "a.jsonl", rows(40)), write(tmp_path / "e.jsonl", rows(30, start=35))
    out = prepare({**PREFERENCE, "limit": 20}, source=train, source_eval=own)
    assert sorted(row["weight"] for row in read_split(out, "eval")) == list(range(35, 65))
    assert len(read_split(out, "train")) == 19
    assert len(read_split(out, "tune")) == 1
    out = prepare(PREFERENCE, source=train, source_eval=own)
    assert read_json(out / "report.json")["prompts_in_train_and_eval"] >= 3


@pytest.mark.fault(16)
def test_unusable_rows_are_dropped_and_counted(prepare: Prepare, tmp_path: Path) -> None:
    items = rows(100)
    items[3]["rejected"] = items[3]["chosen"]
    items[7]["chosen"] = " "
    items[9]["chosen"] = ""
    source = write(tmp_path / "a.jsonl", items)
    out = prepare(PREFERENCE, source=source)
    report = read_json(out / "report.json")
    assert report["dropped"] == {"empty response": 2, "identical pair": 1}
    assert report["dropped_at"] == {
        "source": {"identical pair": ["a.jsonl:4"], "empty response": ["a.jsonl:8", "a.jsonl:10"]}
    }
    assert sum(report["kept"].values()) == 97
    with pytest.raises(StepError) as caught:
        prepare({**PREFERENCE, "max_dropped": 0.02}, source=source)
    assert str(caught.value) == (
        f"{source}: 3 of 100 rows (3.0%) are no usable preferences: 2 empty response (first at a.jsonl:8); "
        "1 identical pair (first at a.jsonl:4). At most 2.0% may be: mend the file, or raise max_dropped in the "
        "dataset's entry"
    )


def test_what_a_rule_of_ones_own_leaves_out_is_counted_and_no_fault(prepare: Prepare, tmp_path: Path) -> None:
    rule = tmp_path / "mine.py"
    rule.write_text("def half(row):\n    return None if row['weight'] % 2 else row\n")
    source = write(tmp_path / "a.jsonl", rows(100))
    out = prepare({"rule": "plugin"}, source=source, rule_plugin=f"{rule}:half")
    report = read_json(out / "report.json")
    assert report["dropped"] == {"dropped by the rule": 50}
    assert sum(report["kept"].values()) == 50


@pytest.mark.parametrize("bad, refused", [(5, False), (6, True)])
def test_five_in_a_hundred_may_be_unusable(prepare: Prepare, tmp_path: Path, bad: int, refused: bool) -> None:
    items = rows(100)
    for item in items[:bad]:
        item["chosen"] = ""
    source = write(tmp_path / "a.jsonl", items)
    if refused:
        with pytest.raises(StepError, match=r"6 of 100 rows \(6.0%\)"):
            prepare(PREFERENCE, source=source)
        prepare({**PREFERENCE, "max_dropped": 0.06}, source=source)
    else:
        prepare(PREFERENCE, source=source)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda items: items[4].pop("rejected"), "a.jsonl, line 5: no 'rejected'; there are: prompt, chosen, weight"),
        (lambda items: items[4].update(chosen=None), "a.jsonl, line 5: 'chosen': is null"),
        (
            lambda items: items[0].pop("chosen"),
            "a.jsonl: no column 'chosen'; there are: 'prompt', 'rejected', 'weight'",
        ),
        (
            lambda items: items.__delitem__(slice(2, None)),
            "2 usable rows of 2 prompts cannot be split into train, eval",
        ),
        (lambda items: items.clear(), "a.jsonl: holds no rows"),
        (
            lambda items: [item.update(rejected=item["chosen"]) for item in items],
            "20 identical pair (first at a.jsonl:1). Nothing is left; is it the right rule?",
        ),
    ],
)
def test_bad_data_is_refused_with_its_place(prepare: Prepare, tmp_path: Path, change: Any, message: str) -> None:
    items = rows(20)
    change(items)
    with pytest.raises(StepError) as caught:
        prepare(PREFERENCE, source=write(tmp_path / "a.jsonl", items))
    assert message in str(caught.value)


def test_malformed_json_is_refused_with_its_line(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", rows(20))
    source.write_text(source.read_text().replace('"bad 6"', '"bad 6'))
    with pytest.raises(StepError, match=r"a.jsonl, line 7: malformed JSON: "):
        prepare(PREFERENCE, source=source)


def test_a_dataset_without_files_is_refused(prepare: Prepare) -> None:
    with pytest.raises(StepError, match="'AH' reads files, and the dataset names none"):
        prepare({"rule": "AH"})


def test_three_prompts_fill_three_splits(prepare: Prepare, tmp_path: Path) -> None:
    out = prepare({**PREFERENCE, "eval_ratio": 0.9}, source=write(tmp_path / "a.jsonl", rows(3)))
    assert [len(read_split(out, split)) for split in SPLITS] == [1, 1, 1]


def test_a_plug_in_rule_may_make_several_rows(prepare: Prepare, tmp_path: Path) -> None:
    plugin = tmp_path / "my.py"
    plugin.write_text(
        "def fn(row):\n"
        "    if row['weight'] == 0:\n        return None\n"
        "    one = {'prompt': row['prompt'], 'chosen': row['chosen'], 'rejected': 'bad', 'prompt_id': 'own'}\n"
        "    return [one, {**one, 'rejected': 'worse'}]\n"
    )
    source = write(tmp_path / "a.jsonl", rows(30))
    out = prepare({"rule": "plugin"}, source=source, rule_plugin=f"{plugin}:fn")
    report = read_json(out / "report.json")
    assert report["dropped"] == {"dropped by the rule": 1}
    assert sum(report["kept"].values()) == 58
    row = read_split(out, "train")[0]
    assert (row["source_prompt_id"], row["prompt_id"][:16]) == ("own", prompt_id(row["prompt"]))


def test_the_playground_needs_no_source(prepare: Prepare) -> None:
    params = {"rule": "playground", "playground": {"train": 30, "tune": 5, "eval": 7}}
    out = prepare(params)
    assert [len(read_split(out, split)) for split in SPLITS] == [30, 5, 7]
    assert digests(out) == digests(prepare(params))
    assert {"gold_chosen", "gold_rejected"} < set(read_split(out, "eval")[0])


@pytest.mark.parametrize(
    "params, message",
    [
        ({"rule": "PPP"}, "no rule 'PPP' (did you mean 'PP'?)"),
        ({"rule": "zzz"}, "there are preference, sft, prompts, AH, PP, PM"),
        ({"rule": "AH", "eval_ratio": 0.0}, "greater than 0"),
        ({"rule": "AH", "eval_ratio": 1.0}, "less than 1"),
        ({"rule": "AH", "max_dropped": 1.1}, "less than or equal to 1"),
        ({"rule": "AH", "limit": 0}, "greater than or equal to 1"),
        ({"rule": "AH", "eval_ratoi": 0.1}, "Extra inputs"),
        ({"rule": "playground", "playground": {"train": 0}}, "greater than or equal to 1"),
    ],
)
def test_parameters_are_checked(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        prep.PrepParams(**params)
    assert message in str(caught.value)


def test_columns_of_mixed_kinds_are_kept_as_json(tmp_path: Path) -> None:
    made = with_ids([{"prompt": [user("a")], "chosen": [], "rejected": []} for _ in range(3)])
    extras = {
        "mixed": [1, "a", None],
        "number": [1, 2.5, None],
        "big": [2**70, 1, 2],
        "nested": [{"b": 1, "a": [2]}, None, None],
        "flag": [True, None, False],
        "none": [None] * 3,
    }
    for name, column in extras.items():
        for row, value in zip(made, column, strict=True):
            row[name] = value
    write_split(tmp_path, "train", made)
    back = read_split(tmp_path, "train")
    assert [row["prompt_id"].partition(".")[2] for row in back] == ["", "1", "2"]
    assert [row["mixed"] for row in back] == ["1", '"a"', None]
    assert [row["number"] for row in back] == [1.0, 2.5, None]
    assert back[0]["big"] == str(2**70)
    assert back[0]["nested"] == '{"a": [2], "b": 1}'
    assert [row["flag"] for row in back] == [True, None, False]
    assert back[0]["none"] is None
    with pytest.raises(StepError, match="no prepared split 'eval'; there are: train"):
        read_split(tmp_path, "eval")


def test_the_format_is_detected_and_told(prepare: Prepare, tmp_path: Path) -> None:
    imitated = [{"prompt": f"question {n}", "completion": f"good {n}", "topic": "t"} for n in range(40)]
    out = prepare({}, source=write(tmp_path / "sft.jsonl", imitated))
    assert (read_json(out / "report.json")["rule"], read_json(out / "report.json")["format"]) == ("sft", "sft")
    row = read_split(out, "train")[0]
    assert (row["rejected"], row["topic"], set(row)) == (
        None,
        "t",
        {"prompt_id", "prompt", "chosen", "rejected", "topic"},
    )
    assert row["chosen"][0]["content"].startswith("good ")
    asked = [{"prompt": f"question {n}"} for n in range(40)]
    out = prepare({}, source=write(tmp_path / "prompts.jsonl", asked))
    assert read_json(out / "report.json")["format"] == "prompts"
    assert {(row["chosen"], row["rejected"]) for split in SPLITS for row in read_split(out, split)} == {(None, None)}
    assert read_json(prepare({}, source=write(tmp_path / "a.jsonl", rows(40))) / "report.json")["rule"] == "preference"
    with pytest.raises(StepError, match=r"odd.jsonl: its columns \('text'\) are those of no format"):
        prepare({}, source=write(tmp_path / "odd.jsonl", [{"text": "a"}]))


def test_columns_are_renamed(prepare: Prepare, tmp_path: Path) -> None:
    named = [{"ask": f"q {n}", "good": "yes", "bad": "no", "chosen": "x", "id": n} for n in range(40)]
    source = write(tmp_path / "a.jsonl", named)
    mapping = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    row = read_split(prepare({"columns": mapping}, source=source), "train")[0]
    assert row["prompt"] == [user(f"q {row['id']}")]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("yes", "no")
    with pytest.raises(StepError, match="no column 'goood'; there are: 'ask', 'good', 'bad', 'chosen', 'id'"):
        prepare({"rule": "preference", "columns": mapping | {"chosen": "goood"}}, source=source)


def test_ties_are_no_fault_of_the_data(prepare: Prepare, tmp_path: Path) -> None:
    row = {"question": "q", "answer_0": "a", "answer_1": "b", "score_0": 0.0, "score_1": 0.0}
    mixed = [row | {"question": f"q {n}", "score_1": float(n % 2)} for n in range(60)]
    report = read_json(prepare({"rule": "OW"}, source=write(tmp_path / "a.jsonl", mixed)) / "report.json")
    assert report["dropped"] == {"tie": 30}
    assert sum(report["kept"].values()) == 30
