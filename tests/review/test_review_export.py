"""What reviewers decided, as files that cdpo and TRL read, and as a dataset on a hub."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from cdpo.config.hub import HubSettings
from cdpo.config.lock import HubName
from cdpo.data.messages import assistant, user
from cdpo.data.prepared import read_split, write_split
from cdpo.errors import UsageError
from cdpo.generate.responses import write_responses
from cdpo.hub.local import LocalHub
from cdpo.review import acts, export, publish, rows, summary
from cdpo.review.sources import Source, sources
from cdpo.store import Store
from tests.conftest import run_cdpo, write_project
from tests.hub.hub_server import WRITER, Hub
from tests.results.made import finish, key, record

COUNT = 40


def made(tmp_path: Path) -> tuple[Store, Source]:
    """A store with one prepared dataset."""
    store = Store(tmp_path / ".cdpo")
    step = finish(store, "PREP", "small", key("prep"))
    folder = store.find(step) / "out"
    for split in ("train", "eval"):
        data = [
            {"prompt": [user(f"{split} {at}")], "chosen": [assistant(f"c{at}")], "rejected": [assistant(f"r{at}")]}
            for at in range(COUNT)
        ]
        write_split(folder, split, data)
    return store, sources(store, [])["PREP/small"]


def say(store: Store, source: Source, split: str, at: int, **by: str | None) -> dict:
    """Votes on a row; `flag` is Ann's."""
    row = rows.rows_at(source.splits()[split], [at])[0]
    place = acts.Place(split, rows.row_ids([row])[0], rows.content_hash(row))
    for who, vote in by.items():
        changes = {"flag": True} if vote == "flag" else {"vote": vote}
        acts.append(store, source.key, who, place, **changes)
    return row


def exported(store: Store, source: Source, **options) -> export.Exported:
    return export.export(source, acts.read_reviews(store, source.key), **options)


def test_the_majority_decides(tmp_path):
    store, source = made(tmp_path)
    kept = say(store, source, "train", 0, Ann="chosen", Bob="chosen", Cy="rejected")
    turned = say(store, source, "train", 3, Ann="rejected")
    held_out = say(store, source, "eval", 5, Bob="chosen")
    flagged = say(store, source, "train", 7, Ann="chosen", Bob="flag")
    say(store, source, "train", 1, Ann="chosen", Bob="rejected")
    say(store, source, "train", 2, Ann="tie", Bob="tie")
    say(store, source, "train", 4, Ann="bad")
    say(store, source, "train", 5, Ann="flag")
    say(store, source, "train", 6, Ann="chosen")
    say(store, source, "train", 6, Ann=None)
    acts.append(store, source.key, "Ann", acts.Place("train", "gone", "0"), vote="chosen")
    acts.append(store, source.key, "Ann", acts.Place("test", "gone", "0"), vote="chosen")
    other = rows.row_ids(rows.rows_at(source.splits()["train"], [9]))[0]
    acts.append(store, source.key, "Ann", acts.Place("train", other, "of another text"), vote="chosen")

    found = exported(store, source)
    assert found.splits == {
        "train": [
            {"prompt": kept["prompt"], "chosen": kept["chosen"], "rejected": kept["rejected"]},
            {"prompt": turned["prompt"], "chosen": turned["rejected"], "rejected": turned["chosen"]},
        ],
        "eval": [{"prompt": held_out["prompt"], "chosen": held_out["chosen"], "rejected": held_out["rejected"]}],
    }
    assert found.swapped == 1
    assert found.left_out == Counter(
        {"flagged": 2, "no majority": 1, "a tie": 1, "both bad": 1, "no longer there": 2, "its text is another now": 1}
    )
    assert len(exported(store, source, keep_flagged=True).splits["train"]) == 3
    assert exported(store, source, keep_flagged=True).splits["train"][2]["prompt"] == flagged["prompt"]
    assert list(exported(store, source, splits=["eval"]).splits) == ["eval"]


def test_single_responses_become_unpaired_preferences(tmp_path):
    store = Store(tmp_path)
    gen = finish(store, "GEN", "gen", key("gen"))
    answer = {"temperature": 1.0, "prompt_tokens": 1, "response_tokens": 1, "token_ids": None, "logprobs": None}
    answer |= {"split": "eval", "chosen": [assistant("c")], "finish_reason": "stop", "seed": 1}
    made = [
        {**answer, "prompt_id": f"{at}", "prompt": [user(f"q{at}")], "sample": sample, "response": f"a{at}{sample}"}
        for at in range(3)
        for sample in range(2)
    ]
    write_responses(store.find(gen) / "out", made)
    record(store, "t", "run", "SFT", 0, {}, [gen])
    source = sources(store, store.read_refs())["t/run"]
    say(store, source, "eval", 1, Ann="good")
    say(store, source, "eval", 4, Ann="bad", Bob="bad")
    say(store, source, "eval", 2, Ann="bad", Bob="good")
    found = exported(store, source)
    assert found.rows == [
        {"prompt": [user("q0")], "completion": [assistant("a01")], "label": True},
        {"prompt": [user("q2")], "completion": [assistant("a20")], "label": False},
    ]
    assert found.left_out == Counter({"no majority": 1})
    assert pq.read_table(_written(tmp_path / "x.parquet", found)).to_pylist() == found.rows


def _written(path: Path, found: export.Exported) -> Path:
    export.write(found.rows, path)
    return path


def test_a_file_is_never_written_over_or_empty(tmp_path):
    store, source = made(tmp_path)
    with pytest.raises(UsageError, match="nothing to export"):
        export.write(exported(store, source).rows, tmp_path / "x.jsonl")
    say(store, source, "train", 0, Ann="chosen")
    export.write(exported(store, source).rows, tmp_path / "x.jsonl")
    with pytest.raises(UsageError, match="there already"):
        export.write(exported(store, source).rows, tmp_path / "x.jsonl")
    with pytest.raises(UsageError, match=r"\.jsonl or \.parquet"):
        export.write(exported(store, source).rows, tmp_path / "x.csv")


TASKS = "tag: again\npipelines: [SFT, DPO]\nmodel: [tiny]\ndataset: [{}]\ntasks: [{{pipeline: DPO, beta: 0.1}}]\n"


@pytest.mark.parametrize("form", ["jsonl", pytest.param("parquet", marks=pytest.mark.slow)])
def test_cdpo_reads_what_it_exports(tmp_path, form):
    store, source = made(tmp_path)
    decided = [say(store, source, "train", at, Ann="rejected" if at % 3 else "chosen") for at in range(30)]
    done = run_cdpo("review", "export", "small", "--to", f"voted.{form}", cwd=tmp_path)
    assert f"voted.{form}: 30 rows, 20 of them the other way round" in done.stdout
    write_project(tmp_path, TASKS.format(f"./voted.{form}"))
    run_cdpo("--store", "again", "prep", cwd=tmp_path)
    (folder,) = (tmp_path / "again" / "steps" / "PREP").iterdir()
    pairs = {
        (row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for split in ("train", "tune", "eval")
        for row in read_split(folder / "out", split)
    }
    names = {True: ("chosen", "rejected"), False: ("rejected", "chosen")}
    assert pairs == {
        (row["prompt"][0]["content"], *(row[name][0]["content"] for name in names[at % 3 == 0]))
        for at, row in enumerate(decided)
    }


def test_trl_reads_what_is_exported(tmp_path):
    from datasets import load_dataset
    from trl.data_utils import is_conversational, maybe_extract_prompt

    store, source = made(tmp_path)
    row = say(store, source, "train", 0, Ann="rejected")
    path = _written(tmp_path / "x.jsonl", exported(store, source))
    (example,) = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert is_conversational(example)
    assert maybe_extract_prompt(example) == {
        "prompt": row["prompt"],
        "chosen": row["rejected"],
        "rejected": row["chosen"],
    }


def voted(tmp_path: Path) -> tuple[Store, Source]:
    store, source = made(tmp_path)
    for at in range(12):
        say(store, source, "train", at, Ann="chosen", Bob="chosen" if at % 4 else "rejected")
        say(store, source, "eval", at, **{"C | <b>": "rejected"})
    return store, source


def check_card(card: str, found: summary.Agreement) -> None:
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["configs"][0]["data_files"] == [
        {"split": "eval", "path": "data/eval.parquet"},
        {"split": "train", "path": "data/train.parquet"},
    ]
    assert "| Ann | 12 |" in card
    assert r"C \| &lt;b&gt; | 12 |" in card
    assert "21 rows, 12 of them the other way round than in the data; left out: 3 no majority" in card
    assert f"{100 * found.percent.mean:.0f} %" in card
    assert f"alpha {found.alpha:.2f}" in card


@pytest.mark.slow
def test_a_review_is_published_to_the_local_hub(tmp_path):
    store, source = voted(tmp_path)
    done = run_cdpo("review", "push", "PREP/small", cwd=tmp_path).stdout
    name = publish.default_name(source, HubSettings())
    assert done.startswith(f"local/{name}@main")
    there = LocalHub(store.root / "hub", "local").find(HubName("dataset", f"local/{name}"))
    assert there is not None
    found = summary.agreement(acts.read_reviews(store, source.key))
    assert found is not None
    check_card((there[1] / "README.md").read_text(), found)
    said = [json.loads(line) for line in (there[1] / "data" / "votes.jsonl").read_text().splitlines()]
    assert Counter((each["reviewer"], each["vote"]) for each in said) == {
        ("Ann", "chosen"): 12,
        ("Bob", "chosen"): 9,
        ("Bob", "rejected"): 3,
        ("C | <b>", "rejected"): 12,
    }
    # and it is a dataset that cdpo trains on: what is its split for training
    write_project(tmp_path, TASKS.format(f"local/{name}"))
    run_cdpo("--store", ".cdpo", "prep", cwd=tmp_path)
    made_again = next(folder for folder in (store.steps / "PREP").iterdir() if "review" in folder.name)
    assert sum(len(read_split(made_again / "out", split)) for split in ("train", "tune", "eval")) == 9


def test_a_review_is_published_to_the_hugging_face_hub(tmp_path):
    _, source = voted(tmp_path)
    with Hub(tmp_path / "hub") as hub:
        env = hub.environment(tmp_path / "cache", WRITER)
        done = run_cdpo("review", "push", source.key, cwd=tmp_path, env=env).stdout
        name = f"ada/{publish.default_name(source, HubSettings())}"
        assert f"{name}@main  {hub.url}/datasets/{name}/tree/main" in done
        run_cdpo("pull", name, "--dataset", "--to", "there", cwd=tmp_path, env=env)
        from tests.hub.hub_messages import Account

        repo = hub.routes.repos.find("datasets", *name.split("/"), Account("ada"))
        assert repo.told["private"] is True
    assert pq.read_table(tmp_path / "there" / "data" / "train.parquet").num_rows == 9


def test_the_command_says_what_is_missing(tmp_path):
    made(tmp_path)
    nobody = run_cdpo("review", "export", "small", "--to", "x.jsonl", cwd=tmp_path, check=2)
    assert "nobody reviewed PREP/small yet" in nobody.stderr
    unknown = run_cdpo("review", "push", "smal", cwd=tmp_path, check=2)
    assert "smal" in unknown.stderr
    assert "Traceback" not in nobody.stderr + unknown.stderr
