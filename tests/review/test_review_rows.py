"""Reading rows: what is shown of a file is what stands in it, and no more of it is in memory than is looked at."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdpo.data.messages import assistant, user
from cdpo.data.prepared import write_split
from cdpo.errors import DamagedFile, UsageError
from cdpo.generate.responses import write_responses
from cdpo.review import rows, scores, sources
from cdpo.score.scores import write_scores
from cdpo.store import Store
from tests.results.made import finish, key, record


def pair(at: int, **more) -> dict:
    return {
        "prompt": [user("be brief"), assistant("yes"), user(f"question {at} {'é' * (at % 7)}")],
        "chosen": [assistant(f"good {at} " + "g" * (at % 11))],
        "rejected": [assistant(f"bad {at}")],
        **more,
    }


@pytest.fixture
def data(tmp_path) -> Path:
    write_split(tmp_path, "train", [pair(at, chosen_score=at / 10, rejected_score=5.0) for at in range(100)])
    return tmp_path / "train.parquet"


def test_an_overview_has_the_numbers_of_every_row(data):
    view = rows.overview(data)
    table = pq.read_table(data).to_pylist()
    assert view.ids.to_pylist() == [row["prompt_id"] for row in table]
    for name in ("prompt", "chosen", "rejected"):
        assert view.measures[f"{name}_chars"].tolist() == [sum(len(m["content"]) for m in row[name]) for row in table]
    assert view.measures["margin"].tolist() == [row["chosen_score"] - row["rejected_score"] for row in table]
    against = rows.against(view.measures)
    assert against is not None
    assert against.tolist() == [row["chosen_score"] < row["rejected_score"] for row in table]


def test_rows_without_a_response_have_no_length_of_it(tmp_path):
    write_split(tmp_path, "train", [pair(0), {**pair(1), "rejected": None}, pair(2)])
    lengths = rows.overview(tmp_path / "train.parquet").measures["rejected_chars"]
    assert [None if math.isnan(each) else each for each in lengths] == [5, None, 5]
    write_split(tmp_path, "eval", [{**pair(1), "rejected": None, "chosen": None}])
    assert list(rows.overview(tmp_path / "eval.parquet").measures) == ["prompt_chars"]
    assert rows.is_single(rows.rows_at(tmp_path / "eval.parquet", [0])[0])
    assert not rows.is_single(rows.rows_at(tmp_path / "train.parquet", [0])[0])


@pytest.mark.parametrize("group", [7, 1000])
def test_rows_are_read_in_the_order_that_is_asked_for(data, tmp_path, group, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 10)
    table = pq.read_table(data)
    path = tmp_path / "groups.parquet"
    pq.write_table(table, path, row_group_size=group)
    wanted = [99, 0, 3, 50, 3]
    assert rows.rows_at(path, wanted) == [table.to_pylist()[at] for at in wanted]
    assert rows.rows_at(path, []) == []


def test_a_search_looks_at_all_texts_and_says_how_far_it_went(data, monkeypatch):
    assert np.flatnonzero(rows.search(data, "GOOD 42 ")).tolist() == [42]
    assert np.flatnonzero(rows.search(data, "bad 7")).tolist() == [7, *range(70, 80)]
    assert rows.search(data, "be brief").all()
    assert np.flatnonzero(rows.search(data, ".*")).tolist() == []
    monkeypatch.setattr(rows, "BATCH", 10)
    assert len(rows.search(data, "good", most=25)) == 25


def test_a_hash_is_of_what_is_read():
    one = rows.content_hash(pair(1))
    assert one == rows.content_hash({**pair(1), "chosen_score": 3.0, "prompt_id": "x"})
    assert one != rows.content_hash(pair(2))
    assert one != rows.content_hash({**pair(1), "chosen": pair(1)["rejected"], "rejected": pair(1)["chosen"]})
    answer = {"prompt": [user("a")], "response": "b", "chosen": [assistant("c")]}
    assert rows.content_hash(answer) == rows.content_hash({**answer, "chosen": [assistant("d")]})


def test_prepared_data_may_have_a_column_named_response(tmp_path):
    """As what `cdpo label-bt` writes of a run, prepared again."""
    write_split(tmp_path, "train", [pair(0, response="said", sample="three")])
    (row,) = rows.rows_at(tmp_path / "train.parquet", [0])
    assert not rows.is_single(row)
    assert rows.content_hash(row) == rows.content_hash(pair(0))
    view = rows.overview(tmp_path / "train.parquet")
    assert "chosen_chars" in view.measures
    assert view.ids.to_pylist() == rows.row_ids([row]) == [row["prompt_id"]]
    assert rows.search(tmp_path / "train.parquet", "good 0").tolist() == [True]


def answers(count: int, samples: int) -> list[dict]:
    return [
        {
            "split": "eval",
            "prompt_id": f"{at:016x}",
            "prompt": [user(f"q{at}")],
            "chosen": [assistant("c")],
            "sample": sample,
            "temperature": 1.0,
            "response": "r" * (at + sample),
            "prompt_tokens": 1,
            "response_tokens": 2,
            "token_ids": [1, 2],
            "logprobs": [0.0, 0.0],
            "finish_reason": "stop",
            "seed": 1,
        }
        for at in range(count)
        for sample in range(samples)
    ]


def test_samples_of_a_prompt_are_rows_with_names_of_their_own(tmp_path):
    write_responses(tmp_path, answers(3, 2))
    path = tmp_path / "responses.parquet"
    view = rows.overview(path)
    assert view.ids.to_pylist()[:4] == ["0" * 16, "0" * 16 + ":1", "0" * 15 + "1", "0" * 15 + "1:1"]
    assert rows.row_ids(rows.rows_at(path, range(6))) == view.ids.to_pylist()
    assert rows.position(view, "0" * 15 + "1:1") == 3
    assert rows.position(view, "nobody") is None
    assert rows.positions(view, ["0" * 15 + "2", "nobody"]) == {"0" * 15 + "2": 4}
    assert "seed" not in view.measures
    assert "token_ids" not in rows.rows_at(path, [0])[0]


@pytest.mark.parametrize("by_sample", [True, False])
def test_scores_stand_beside_their_responses(tmp_path, by_sample):
    store = Store(tmp_path)
    gen = finish(store, "GEN", "gen", key("gen"), table={"x": [1]})
    folder = store.find(gen) / "out"
    write_responses(folder, answers(3, 2))
    scored = finish(store, "EVALREWARD", "e", key("e"), inputs={"responses": {"step": gen}}, table={"x": [1]})
    one = [{"split": "eval", "prompt_id": f"{at:016x}", "sample": 0} for at in (2, 0)]
    two = [{**row, "sample": 1} for row in one]
    table = [{**row, "reward_generated": float(at)} for at, row in enumerate([*one, *two])]
    if not by_sample:
        table = [{name: value for name, value in row.items() if name != "sample"} for row in table[:2]]
    write_scores(store.find(scored) / "out", table, "samples.parquet" if by_sample else "scores.parquet")
    record(store, "t", "run", "SFT", 0, {}, [gen, scored, key("not finished")])
    (source,) = (each for each in sources.sources(store, store.read_refs()).values())
    assert (source.label, source.single, list(source.splits())) == ("t/run", True, ["eval"])
    view = rows.overview(source.splits()["eval"])
    found = scores.scores_of(store, source.ref, source.key, view)["reward/mean"]
    expected = [1, 3, None, None, 0, 2] if by_sample else [1, 1, None, None, 0, 0]
    assert [None if math.isnan(each) else each for each in found] == expected


def test_what_can_be_reviewed(tmp_path):
    store = Store(tmp_path)
    assert sources.sources(store, []) == {}
    for name in ("a", "b"):
        finish(store, "PREP", "same", key(name), table={"x": [1]}, file="train.parquet")
    finish(store, "SFT", "other", key("sft"), table={"x": [1]})
    finish(store, "GEN", "alone", key("gen"), table={"x": [1]}, file="responses.parquet")
    found = sources.sources(store, [])
    assert len(found) == 3
    assert {each.key for each in found.values()} == {key(name)[:12] for name in ("a", "b", "gen")}
    assert sources.find(store, key("a")).key == key("a")[:12]
    with pytest.raises(UsageError, match="PREP/same"):
        sources.find(store, "PREP/sane")


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedFile, match=r"train\.parquet"):
        rows.overview(tmp_path / "train.parquet")


MEASURE = """
import json, resource, sys, time
from pathlib import Path
from cdpo.review import rows
import pyarrow.parquet, pyarrow.compute, numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
view = rows.overview(Path(sys.argv[1]))
rows.rows_at(Path(sys.argv[1]), [len(view) - 1])
rows.search(Path(sys.argv[1]), "nowhere")
print(json.dumps({"rows": len(view), "more": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3}))
"""


def test_texts_are_never_all_in_memory(tmp_path):
    """800 MB of text in one row group, as PREP writes it."""
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    text = pa.array([[{"role": "user", "content": "x" * 8000}]] * 2000, messages)
    table = pa.table({"prompt_id": [f"{at}" for at in range(2000)], "prompt": text, "chosen": text, "rejected": text})
    path = tmp_path / "train.parquet"
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(17):
            writer.write_table(table, row_group_size=2000)
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    assert measured["rows"] == 34_000
    assert measured["more"] < 300, measured
