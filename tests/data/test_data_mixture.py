"""Mixtures: how much of each dataset, in which order, and nothing that is evaluated among the training rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdpo.data.messages import assistant, user
from cdpo.data.mixing import share_of, taken
from cdpo.data.prepared import SPLITS, read_split, write_split
from cdpo.errors import StepError
from cdpo.files import file_sha256, read_json
from cdpo.pipelines import mixture
from cdpo.step import Device, Step
from tests.conftest import run_cdpo, write_project


def rows(word: str, numbers: range) -> list[dict[str, Any]]:
    return [
        {"prompt": [user(f"{word} {n}")], "chosen": [assistant("yes")], "rejected": [assistant("no")], "score": n}
        for n in numbers
    ]


def prepared(folder: Path, word: str, train: int, kind: str = "preference", **splits: list[dict[str, Any]]) -> Path:
    made = {"train": rows(word, range(train)), "tune": rows(word, range(900, 910)), "eval": rows(word, range(950, 970))}
    for split, own in {**made, **splits}.items():
        write_split(folder, split, own)
    (folder / "report.json").write_text(json.dumps({"format": kind}))
    return folder


def mix(work: Path, parts: list[dict[str, Any]], *folders: Path, seed: int = 42) -> Path:
    (work / "out").mkdir(parents=True)
    inputs: dict[str, str | list[str]] = {f"data_{at}": str(folder) for at, folder in enumerate(folders)}
    mixture.run(Step("MIXTURE", "k" * 64, "mix", {"parts": parts, "seed": seed}, inputs, None, Device(), work))
    return work / "out"


def test_counts_are_taken_and_all_splits_have_the_same_share(tmp_path: Path) -> None:
    a, b = prepared(tmp_path / "a", "a", 100), prepared(tmp_path / "b", "b", 50)
    out = mix(tmp_path / "w", [{"dataset": "A", "n": 50}, {"dataset": "B"}], a, b)
    report = read_json(out / "report.json")
    assert report["parts"] == {"A": {"train": 50, "tune": 5, "eval": 10}, "B": {"train": 50, "tune": 10, "eval": 20}}
    assert (report["format"], report["kept"], report["dropped"]) == (
        "preference",
        {"train": 100, "tune": 15, "eval": 30},
        {},
    )
    train = read_split(out, "train")
    assert {row["dataset"] for row in train} == {"A", "B"}
    # both stand all over the split, and the first rows of A are those that were taken
    assert 10 < sum(row["dataset"] == "A" for row in train[:50]) < 40
    assert sorted(row["score"] for row in train if row["dataset"] == "A") == list(range(50))
    assert len({row["prompt_id"] for row in train}) == 100
    again = mix(tmp_path / "again", [{"dataset": "A", "n": 50}, {"dataset": "B"}], a, b)
    assert [file_sha256(out / f"{each}.parquet") for each in SPLITS] == [
        file_sha256(again / f"{each}.parquet") for each in SPLITS
    ]


def test_what_one_dataset_evaluates_the_other_does_not_train_on(tmp_path: Path) -> None:
    a = prepared(tmp_path / "a", "same", 100)
    b = prepared(tmp_path / "b", "other", 100, eval=rows("same", range(90, 110)))
    out = mix(tmp_path / "w", [{"dataset": "A"}, {"dataset": "B"}], a, b)
    assert read_json(out / "report.json")["dropped"] == {"prompt is evaluated in another dataset": 10}
    prompts = [{str(row["prompt"]) for row in read_split(out, split)} for split in ("train", "eval")]
    assert not prompts[0] & prompts[1]


def test_formats_that_differ_leave_what_all_have(tmp_path: Path) -> None:
    a, b = prepared(tmp_path / "a", "a", 10), prepared(tmp_path / "b", "b", 10, kind="sft")
    out = mix(tmp_path / "w", [{"dataset": "A"}, {"dataset": "B"}], a, b)
    assert read_json(out / "report.json")["format"] == "sft"


def test_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    a, b = prepared(tmp_path / "a", "a", 10), prepared(tmp_path / "b", "b", 10)
    with pytest.raises(StepError, match="takes 11 rows of B, which has 10 to train on"):
        mix(tmp_path / "w", [{"dataset": "A"}, {"dataset": "B", "n": 11}], a, b)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(50, 5000)), min_size=2, max_size=5))
def test_proportions_are_kept_and_the_mixture_is_as_large_as_it_can_be(parts: list[tuple[int, int]]) -> None:
    whole = sum(weight for weight, _ in parts)
    asked = [{"dataset": "d", "proportion": weight / whole} for weight, _ in parts]
    sizes = [size for _, size in parts]
    shares = share_of(asked, sizes)
    assert max(shares) == pytest.approx(1)
    counts = [len(taken([{}] * size, share)) for size, share in zip(sizes, shares, strict=True)]
    for part, count in zip(asked, counts, strict=True):
        assert count == pytest.approx(part["proportion"] * sum(counts), abs=len(parts))


TASKS = """\
tag: mixed
pipelines: [GEN]
model: [tiny]
dataset: [both]
tasks: [{pipeline: BASE}]
"""


def test_a_mixture_is_planned_and_prepared(tmp_path: Path) -> None:
    tables = (
        "one: {rule: playground, gold: playground, playground: {train: 40, tune: 4, eval: 8}}\n"
        "two: {rule: playground, gold: playground, seed: 7, playground: {train: 40, tune: 4, eval: 8}}\n"
        "both: {mix: [{dataset: one, n: 10}, {dataset: two}]}\n"
    )
    folder = write_project(tmp_path, TASKS, datasets=tables)
    said = run_cdpo("prep", cwd=folder).stdout
    assert "MIXTURE" in said
    (made,) = (folder / ".cdpo" / "steps" / "MIXTURE").iterdir()
    assert read_json(made / "out" / "report.json")["parts"]["one"]["train"] == 10
    assert len(list((folder / ".cdpo" / "steps" / "PREP").iterdir())) == 2


@pytest.mark.parametrize(
    "entry, said",
    [
        ("{mix: [{dataset: playground}]}", "both.mix: "),
        ("{mix: [{dataset: playground}, {dataset: nope}]}", "no dataset is called 'nope'"),
        ("{mix: [{dataset: playground}, {dataset: both}]}", "which is a mixture itself"),
        (
            "{mix: [{dataset: playground, proportion: 0.5}, {dataset: playground}]}",
            "proportions are of all the datasets",
        ),
        ("{mix: [{dataset: playground, m: 5}, {dataset: playground}]}", "unknown key"),
        ("{mix: [{dataset: playground}, {dataset: playground}], limit: 5}", "has its own entry, where this belongs"),
        ("{mix: [{dataset: playground}, {dataset: playground}], path: x}", "one of id, path and mix"),
    ],
)
def test_what_is_no_mixture_is_refused_with_its_place(tmp_path: Path, entry: str, said: str) -> None:
    folder = write_project(tmp_path, TASKS, datasets=f"both: {entry}\n")
    assert said in run_cdpo("plan", cwd=folder, check=2).stderr
