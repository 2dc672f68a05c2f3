"""EVALREWARD, EVALREWARD_CHOSEN and EVALREWARD_BT cut into shards: every text scored once, joined to the whole."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_evalreward_bt import data, label  # noqa: F401 (fixtures)
from test_score_reward import answered, policy_folder, reward_folder, score_step, with_chosen  # noqa: F401 (fixtures)

from cdpo.data.prepared import SPLITS
from cdpo.files import read_json_lines
from cdpo.pipelines import evalreward, evalreward_bt, evalreward_chosen
from cdpo.step import Device, Step

PIPELINES = {"EVALREWARD": evalreward, "EVALREWARD_BT": evalreward_bt, "EVALREWARD_CHOSEN": evalreward_chosen}


@pytest.fixture
def make_step(tmp_path: Path, data: Path, reward_folder: Path, score_step: Any) -> Any:  # noqa: F811
    def make(pipeline: str, name: str) -> Step:
        if pipeline == "EVALREWARD":
            return with_chosen(score_step(name))
        inputs = {"data": str(data), "reward": str(reward_folder)}
        step = Step(pipeline, "0" * 64, name, {}, inputs, None, Device(), tmp_path / name)
        step.out.mkdir(parents=True)
        return step

    return make


def tables(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Every parquet file that a step left; a batch rounds scores in its own way."""
    found = {}
    for path in sorted(out.glob("*.parquet")):
        rows = pq.read_table(path).to_pylist()
        found[path.name] = [
            {name: pytest.approx(value, abs=1e-5) if isinstance(value, float) else value for name, value in row.items()}
            for row in rows
        ]
    return found


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("count", [2, 40])
def test_shards_join_to_the_whole(make_step, pipeline, count, monkeypatch):
    run = PIPELINES[pipeline].run
    whole = make_step(pipeline, "whole")
    run(whole)
    parts = []
    for index in range(count):
        part = make_step(pipeline, f"part{index}")
        part.shard = {"of": "0" * 64, "index": index, "count": count}
        run(part)
        assert [path.name for path in part.out.iterdir()] == ["scores.jsonl"]
        parts.append(part)
    keys = [key for part in parts for key, _ in read_json_lines(part.out / "scores.jsonl")]
    assert len(keys) == len(set(keys)) == sum(1 for _ in read_json_lines(whole.checkpoints / "scores.jsonl"))
    joined = make_step(pipeline, "joined")
    joined.inputs = {**joined.inputs, "shards": [str(part.out) for part in parts]}
    monkeypatch.setattr("cdpo.score.scorer.score", None)  # nothing is left to be scored
    run(joined)
    made = {path.name: pq.read_table(path).to_pylist() for path in joined.out.glob("*.parquet")}
    assert made == tables(whole.out)
    assert set(made) >= {"EVALREWARD": {"scores.parquet"}, "EVALREWARD_BT": {f"{each}.parquet" for each in SPLITS}}.get(
        pipeline, {"chosen.parquet"}
    )
