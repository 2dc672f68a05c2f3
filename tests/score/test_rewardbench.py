"""REWARDBENCH: accuracies counted by other means, subsets, ties, refusals; resumed, cut into shards, compared."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdpo.errors import StepError
from cdpo.pipelines.rewardbench import run
from cdpo.step import Device, Step
from tests.conftest import DATA, run_cdpo, write_project
from tests.hub.hub_content import fill
from tests.hub.hub_server import Hub

LLMBAR = DATA / "llmbar"
FUNCTIONS = """\
def length(prompts, responses):
    return [float(len(response)) for response in responses]


def brevity(prompts, responses):
    return [-float(len(response)) for response in responses]


def words(prompts, responses):
    return [float(len(response.split())) for response in responses]
"""
ROWS = [
    {"prompt": "p1", "chosen": "longer", "rejected": "short", "subset": "chat"},
    {"prompt": "p2", "chosen": "s", "rejected": "longer", "subset": "chat"},
    {"prompt": "p3", "chosen": "same", "rejected": "four", "subset": "chat"},
    {"prompt": [{"role": "user", "content": "p4"}], "chosen": "longer", "rejected": "l", "subset": "code"},
    {"prompt": "p1", "chosen": "longest", "rejected": "longer", "subset": "code"},
]

real = pytest.mark.skipif(not LLMBAR.exists(), reason=f"no {LLMBAR}")


@pytest.fixture
def make_step(tmp_path: Path) -> Callable[..., Step]:
    (tmp_path / "my.py").write_text(FUNCTIONS)

    def make(
        name: str, rows: Sequence[dict[str, Any]] | list[Path] = ROWS, function: str = "length", **params: Any
    ) -> Step:
        files = rows if rows and isinstance(rows[0], Path) else [tmp_path / f"{name}.jsonl"]
        if files is not rows:
            files[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
        inputs = {"questions": [str(file) for file in files], "reward_plugin": f"{tmp_path / 'my.py'}:{function}"}
        step = Step("REWARDBENCH", "0" * 64, name, params, inputs, None, Device(), tmp_path / name)
        step.out.mkdir(parents=True)
        return step

    return make


def table(step: Step) -> list[dict[str, Any]]:
    return pq.read_table(step.out / "scores.parquet").to_pylist()


def test_overall_by_subset_and_their_mean(make_step: Callable[..., Step]) -> None:
    step = make_step("s")
    report = run(step)
    assert report["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1 + 1) / 5)
    assert (report["rows"], report["ties"]) == (5, 1)
    assert {name: (each["accuracy"], each["ties"]) for name, each in report["subsets"].items()} == {
        "chat": (0.5, 1),
        "code": (1.0, 0),
    }
    assert report["subset_mean"] == pytest.approx(0.75)
    assert 0 < report["low"] < report["accuracy"] < report["high"] < 1
    rows = table(step)
    assert [row["accuracy"] for row in rows] == [1, 0, 0.5, 1, 1]
    assert np.mean([row["subset_mean"] for row in rows]) == pytest.approx(0.75)
    assert [row["accuracy/code"] for row in rows] == [None, None, None, 1, 1]
    assert (rows[0]["reward_chosen"], rows[0]["reward_rejected"]) == (6, 5)
    # two rows of one prompt have ids of their own, that say so
    assert rows[4]["prompt_id"] == f"{rows[0]['prompt_id']}.1"
    assert len({row["prompt_id"] for row in rows}) == 5
    assert json.loads((step.out / "report.json").read_text())["subsets"] == report["subsets"]


def test_rows_without_subsets_have_none(make_step: Callable[..., Step]) -> None:
    step = make_step("s", [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in ROWS])
    report = run(step)
    assert report["subsets"] == {}
    assert report["subset_mean"] is None
    assert report["metrics"] == {}
    assert set(table(step)[0]) == {"split", "prompt_id", "reward_chosen", "reward_rejected", "accuracy"}


def test_reversed_a_reward_prefers_the_others(make_step: Callable[..., Step]) -> None:
    assert run(make_step("s", reverse=True))["accuracy"] == pytest.approx((0 + 1 + 0.5 + 0 + 0) / 5)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"input": "a", "output_1": "b", "output_2": "c", "label": 3}, "line 6: 'label': expected 1 or 2, got 3"),
        ({"prompt": "a", "completion": "b"}, "line 6: it has no two responses, one of which is the better"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "line 6: 'chosen': expected a text"),
        ({"prompt": "a", "chosen": "c", "rejected": "b", "subset": 3}, "line 6: 'subset': expected a text"),
        ({"prompt": "a", "chosen": "c", "rejected": "c"}, r"1 of 6 rows are of no use \(identical pair: 1\)"),
    ],
)
def test_a_bad_row_is_told_with_its_place(make_step: Callable[..., Step], row: dict[str, Any], said: str) -> None:
    with pytest.raises(StepError, match=said):
        run(make_step("s", [*ROWS, row]))


def test_shards_join_and_a_journal_is_gone_on_from(make_step: Callable[..., Step], tmp_path: Path) -> None:
    whole = make_step("whole")
    run(whole)
    parts = []
    for index in range(2):
        part = make_step(f"part{index}")
        part.shard = {"of": "0" * 64, "index": index, "count": 2}
        run(part)
        parts.append(str(part.out))
    joined = make_step("joined")
    joined.inputs = {**joined.inputs, "shards": parts}
    # the function would fail: nothing is left to be asked
    (tmp_path / "my.py").write_text("def length(prompts, responses):\n    raise RuntimeError\n")
    run(joined)
    assert table(joined) == table(whole)
    assert run(whole)["scored"] == 0


def count(function: Callable[[str], float]) -> dict[str, list[float]]:
    """LLMBar's accuracies by subset, counted from the files by themselves."""
    found: dict[str, list[float]] = {}
    for file in sorted(LLMBAR.glob("*.json")):
        for row in json.loads(file.read_text()):
            first, second = function(row["output_1"]), function(row["output_2"])
            better = 0.5 if first == second else float((first > second) == (row["label"] == 1))
            found.setdefault(file.stem, []).append(better)
    return found


@real
def test_llmbar_as_it_is(make_step: Callable[..., Step]) -> None:
    report = run(make_step("s", sorted(LLMBAR.glob("*.json"))))
    counted = count(len)
    assert {name: each["accuracy"] for name, each in report["subsets"].items()} == {
        name: pytest.approx(np.mean(values), abs=1e-12) for name, values in counted.items()
    }
    every = [value for values in counted.values() for value in values]
    assert len(every) == report["rows"] == 419
    assert report["accuracy"] == pytest.approx(np.mean(every), abs=1e-12)
    assert report["ties"] == every.count(0.5) > 0
    assert report["subset_mean"] == pytest.approx(np.mean([np.mean(values) for values in counted.values()]))


def test_questions_of_the_hub(tmp_path: Path) -> None:
    tasks = """\
tag: bench
pipelines: [REWARDBENCH]
model: [tiny]
dataset: [small]
tasks: [{pipeline: BASE}]
REWARDBENCH: {reward: "./my.py:length", questions: pairs}
"""
    datasets = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
    datasets += "pairs: {id: lab/pairs, split: test}\n"
    folder = write_project(tmp_path / "project", tasks, datasets=datasets)
    (folder / "my.py").write_text(FUNCTIONS)
    data = {
        name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in (("test", ROWS), ("train", ROWS[:1]))
    }
    with Hub(tmp_path / "hub") as hub:
        fill(hub, "datasets", "lab/pairs", {f"{name}.jsonl": text for name, text in data.items()})
        environment = hub.environment(tmp_path / "cache", None)
        run_cdpo("prep", cwd=folder, env=environment)
    run_cdpo("execute", "--display", "plain", cwd=folder, env=environment)
    (found,) = json.loads(run_cdpo("results", "--json", cwd=folder).stdout)["runs"]
    assert found["metrics"]["rewardbench/accuracy"]["mean"] == pytest.approx(0.7)
    assert found["metrics"]["rewardbench/accuracy"]["n"] == 5


@pytest.mark.slow
def test_policies_that_share_it_are_not_compared_in_it(tmp_path: Path) -> None:
    tasks = """\
tag: bench
pipelines: [REWARDBENCH]
model: [tiny]
dataset: [small]
seed: [0, 1]
tasks: [{pipeline: BASE}]
REWARDBENCH: {reward: "./my.py:length", questions: ./pairs.jsonl, limit: [2, 5]}
"""
    datasets = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
    folder = write_project(tmp_path, tasks, datasets=datasets)
    (folder / "my.py").write_text(FUNCTIONS)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run_cdpo("prep", cwd=folder)
    run_cdpo("execute", "--display", "plain", cwd=folder)
    runs = {
        each["name"]: each["metrics"] for each in json.loads(run_cdpo("results", "--json", cwd=folder).stdout)["runs"]
    }
    assert sorted(found["rewardbench/accuracy"]["n"] for found in runs.values()) == [2, 2, 5, 5]
    few, many = ([name for name in runs if f"limit{count}" in name] for count in (2, 5))
    refused = run_cdpo("compare", *few, cwd=folder, check=None)
    assert "rewardbench/subset_mean: the very same values" in refused.stderr
    # another choice of rows is another benchmark
    refused = run_cdpo("compare", few[0], many[0], cwd=folder, check=None)
    assert "rewardbench/accuracy: it means different things: " in refused.stderr
    assert "other rows" in refused.stderr


@real
def test_two_rewards_are_compared_pair_by_pair(tmp_path: Path) -> None:
    """From tasks.yaml to `cdpo compare`: the figures are those that are counted from the files."""
    tasks = f"""\
tag: bench
pipelines: [REWARDBENCH]
model: [tiny]
dataset: [small]
tasks: [{{pipeline: BASE}}]
REWARDBENCH: {{reward: ["./my.py:length", "./my.py:words"], questions: "{LLMBAR}/*.json"}}
"""
    datasets = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
    folder = write_project(tmp_path, tasks, datasets=datasets)
    (folder / "my.py").write_text(FUNCTIONS)
    run_cdpo("prep", cwd=folder)
    run_cdpo("execute", "--display", "plain", cwd=folder)
    runs = json.loads(run_cdpo("results", "--json", cwd=folder).stdout)["runs"]
    counted = {"length": count(len), "words": count(lambda text: len(text.split()))}
    names = {}
    for each in runs:
        which = "words" if "words" in each["name"] else "length"
        names[which] = each["name"]
        metrics, by_subset = each["metrics"], counted[which]
        every = [value for values in by_subset.values() for value in values]
        assert set(metrics) == {
            "rewardbench/accuracy",
            "rewardbench/subset_mean",
            *(f"rewardbench/accuracy/{subset}" for subset in by_subset),
        }
        assert metrics["rewardbench/accuracy"]["mean"] == pytest.approx(np.mean(every))
        assert metrics["rewardbench/subset_mean"]["mean"] == pytest.approx(np.mean([*map(np.mean, by_subset.values())]))
        for subset, values in by_subset.items():
            found = metrics[f"rewardbench/accuracy/{subset}"]
            assert (found["mean"], found["n"]) == (pytest.approx(np.mean(values)), len(values))
        # Wilson's interval of so many rows, by its formula (ties count for more, so it is a little narrower)
        mean, n, z2 = float(np.mean(every)), len(every), 1.959964**2
        centre, half = mean + z2 / (2 * n), math.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n)))
        assert metrics["rewardbench/accuracy"]["low"] == pytest.approx((centre - half) / (1 + z2 / n), abs=2e-3)
    said = json.loads(run_cdpo("compare", names["length"], names["words"], "--json", cwd=folder).stdout)
    difference = said["metrics"]["rewardbench/accuracy"]
    pairs = [(a, b) for name in counted["length"] for a, b in zip(*(counted[of][name] for of in counted), strict=True)]
    assert difference["difference"] == pytest.approx(np.mean([a - b for a, b in pairs]))
    assert [difference[name] for name in ("wins", "ties", "losses", "n", "unpaired")] == [
        sum(a > b for a, b in pairs),
        sum(a == b for a, b in pairs),
        sum(a < b for a, b in pairs),
        419,
        0,
    ]
