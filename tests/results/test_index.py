"""The index: what was worked out once is the same as what is worked out now, whatever happened in between."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdpo.report import collect as module
from cdpo.report.collect import collect, compare
from cdpo.report.index import FILE, Index, stamp_of
from cdpo.store import Store
from tests.results.made import PROMPTS, finish, key, record, scored_again


def add_run(store, name, seed, shift=0.0, tag="t"):
    """A run of an SFT step and its scores."""
    draw = np.random.default_rng([seed, int(shift * 1000)])
    trained, scored = key("SFT", name, seed, shift), key("EVALREWARD", name, seed, shift)
    if store.find(trained) is None:
        table = {"split": "eval", "prompt_id": PROMPTS, "loss": draw.normal(2, 0.1, len(PROMPTS))}
        finish(store, "SFT", name, trained, params={"beta": shift}, seed=seed, table=table)
        table = {"split": "eval", "prompt_id": PROMPTS, "reward_generated": draw.normal(shift, 1, len(PROMPTS))}
        finish(store, "EVALREWARD", name, scored, inputs={"model": {"step": trained}}, seed=seed, table=table)
    record(store, tag, f"{name}_s{seed}", "SFT", seed, {"beta": shift}, [trained, scored])
    return trained, scored


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / ".cdpo")
    for seed in (0, 1):
        add_run(store, "a", seed)
        add_run(store, "b", seed, 0.5)
    return store


def anew(store):
    """As if there had never been an index."""
    (store.root / FILE).unlink(missing_ok=True)
    return collect(store.root)


def means(found):
    return {run["name"]: run["metrics"]["reward/mean"]["mean"] for run in found["runs"] if run["metrics"]}


def test_what_is_kept_is_what_was_worked_out(store, monkeypatch):
    first = collect(store.root)
    assert json.loads(json.dumps(first)) == first  # else a kept one would be another
    monkeypatch.setattr(module, "_collect", lambda *given: pytest.fail("worked out again"))
    assert collect(store.root) == first
    assert collect(store.root, parts=("groups",)) == {"groups": first["groups"]}


def test_rows_are_read_once_whatever_else_is_new(store, monkeypatch):
    from cdpo.report import reading

    before = collect(store.root)
    compared = compare(store.root, "t/a_s0", "t/b_s0")
    read = []
    original = reading.read_columns
    monkeypatch.setattr(reading, "read_columns", lambda path, *more: read.append(path) or original(path, *more))
    assert compare(store.root, "t/a_s0", "t/b_s0") == compared
    assert read == []
    _, scored = add_run(store, "c", 0, 0.9)
    after = collect(store.root)
    assert {run["name"] for run in after["runs"]} == {run["name"] for run in before["runs"]} | {"c_s0"}
    folders = {store.find(key) for key in (scored, *after["runs"][-1]["steps"])}
    assert read
    assert {path.parent.parent for path in read} <= folders


def test_every_change_is_seen(store):
    steady = means(collect(store.root))
    trained, scored = add_run(store, "c", 0, 0.9)
    assert set(means(collect(store.root))) == {*steady, "c_s0"}
    # scores that are made again under another name: another ref
    record(store, "t", "c_s0", "SFT", 0, {"beta": 0.9}, [trained])
    assert "reward/mean" not in {run["name"]: run for run in collect(store.root)["runs"]}["c_s0"]["metrics"]
    record(store, "t", "c_s0", "SFT", 0, {"beta": 0.9}, [trained, scored])
    # scores that are lost
    (store.find(scored) / "out" / "scores.parquet").unlink()
    (found,) = [run for run in collect(store.root)["runs"] if run["name"] == "c_s0"]
    assert found["state"] == "unfinished"
    work = store.work(scored)
    work.mkdir(parents=True)
    (work / "failure.json").write_text("{}")
    (found,) = [run for run in collect(store.root)["runs"] if run["name"] == "c_s0"]
    assert found["state"] == "failed"
    store.remove_ref("t", "c_s0")
    assert means(collect(store.root)) == steady


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"x" * 4000])
def test_an_index_that_is_none_is_begun_anew(store, content):
    right = anew(store)
    (store.root / FILE).write_bytes(content)
    assert collect(store.root) == right
    assert collect(store.root) == right
    assert collect(store.root) == right
    assert (
        Index(store.root / FILE).look("collected", [f"{stamp_of(store)} {json.dumps(['runs', None, True])}"])
        is not None
    )


def test_an_index_of_another_form_is_of_no_use_and_no_harm(store):
    import sqlite3

    right = anew(store)
    (store.root / FILE).unlink()
    with sqlite3.connect(store.root / FILE) as connection:
        connection.execute("CREATE TABLE kept (other TEXT)")
    connection.close()
    assert collect(store.root) == right


def test_other_statistics_are_worked_out_again(store, monkeypatch):
    from cdpo.report import index

    collect(store.root)
    monkeypatch.setattr(index, "_code", lambda: "another")
    monkeypatch.setattr(module, "_collect", lambda *given: dict.fromkeys(module.PARTS, "anew"))
    assert collect(store.root)["runs"] == "anew"


def test_a_store_that_cannot_be_written_has_its_index_in_the_users_cache(store, monkeypatch, tmp_path):
    right = anew(store)
    (store.root / FILE).unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("cdpo.report.index.os.access", lambda *given: False)
    assert collect(store.root) == right
    assert not (store.root / FILE).exists()
    assert list((tmp_path / "cache" / "cdpo").glob(f"*{FILE}"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert collect(store.root) == right


def test_a_step_that_is_made_again_has_its_new_values(store):
    """Under its old key, for `cdpo redo` changes nothing that a key is made of; a judge says other things."""
    kept = collect(store.root)
    compared = compare(store.root, "t/a_s0", "t/b_s0")
    scored_again(store, key("EVALREWARD", "a", 0, 0.0), 3.0)
    after = compare(store.root, "t/a_s0", "t/b_s0")
    assert after["metrics"]["reward/mean"]["a_mean"] > compared["metrics"]["reward/mean"]["a_mean"] + 2
    found = collect(store.root)
    (one,) = [run for run in found["runs"] if run["name"] == "a_s0"]
    before = kept["runs"][0]["metrics"]["reward/mean"]
    assert one["metrics"]["reward/mean"]["low"] > before["high"]
    assert found == anew(store)


def test_scores_that_somebody_wrote_over_are_read_again(store):
    collect(store.root)
    path = store.find(key("EVALREWARD", "a", 0, 0.0)) / "out" / "scores.parquet"
    size, table = path.stat().st_size, pd.read_parquet(path)
    for _ in range(200):  # of the same size, so that nothing is damaged
        table.assign(reward_generated=np.random.default_rng(_).normal(3, 1, len(table))).to_parquet(path)
        if path.stat().st_size == size:
            break
    assert path.stat().st_size == size
    kept = collect(store.root)
    assert kept == anew(store)
    assert means(kept)["a_s0"] > 2


@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_a_manifest_that_is_damaged_is_seen(store, content):
    collect(store.root)
    path = store.find(key("EVALREWARD", "a", 0, 0.0)) / "manifest.json"
    path.unlink() if content is None else path.write_bytes(content)
    kept = collect(store.root)
    assert kept["runs"][0]["state"] == "unfinished"
    assert kept == anew(store)


def test_nothing_is_kept_of_what_a_store_was_or_an_older_release_said(store, monkeypatch):
    from cdpo.report import index

    def there():
        return len(Index(store.root / FILE)._load("SELECT key, value FROM kept WHERE kind = 'collected'"))

    for at in range(5):
        add_run(store, "c", at, 0.9)
        collect(store.root)
        collect(store.root, "t")
        collect(store.root, "t")
        assert there() == 2 * len(module.PARTS)
    monkeypatch.setattr(index, "_code", lambda: "another")
    collect(store.root, "t")
    assert there() == len(module.PARTS)


def test_a_file_system_without_room_for_the_index_is_only_slower(store):
    right = anew(store)
    (store.root / FILE).unlink()
    told = (
        "import json, resource, sys; from cdpo.report.collect import collect;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2); print(json.dumps(collect(sys.argv[1])))"
    )
    for most in (0, 9000):
        command = [sys.executable, "-c", told, str(store.root), str(most)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(done.stdout) == right
        assert collect(store.root) == right


def test_what_a_killed_writer_left_is_no_harm(store):
    """A journal beside an index that is no database, or is another one."""
    right = anew(store)
    journal = store.root / f"{FILE}-journal"
    killed = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA cache_size = 1');"
        "c.execute('BEGIN'); c.execute(\"UPDATE kept SET value = value || '0'\"); os.kill(os.getpid(), 9)"
    )
    for content in (None, b"no database"):
        subprocess.run([sys.executable, "-c", killed, str(store.root / FILE)], timeout=60, check=False)
        if content is not None:
            (store.root / FILE).write_bytes(content)
        assert journal.exists()
        assert collect(store.root) == right
        assert collect(store.root) == right
        assert not journal.exists()


def test_what_no_run_needs_is_forgotten(store):
    add_run(store, "c", 0, 0.9)
    collect(store.root)
    kept = Index(store.root / FILE)._load("SELECT key, value FROM kept WHERE kind = ?", "estimate")
    store.remove_ref("t", "c_s0")
    collect(store.root)
    record(store, "t", "again_s1", "SFT", 1, {"beta": 0.0}, [key("SFT", "a", 1, 0.0)])
    collect(store.root)
    left = Index(store.root / FILE)._load("SELECT key, value FROM kept WHERE kind = ?", "estimate")
    assert len(left) < len(kept)


def test_only_a_few_steps_rows_are_held(store, monkeypatch):
    from cdpo.report import reading

    monkeypatch.setattr(reading, "MOST_HELD", 2)
    for seed in range(6):
        add_run(store, "many", seed, 0.25)
    reader = reading.Reader(store)
    for ref in store.read_refs():
        for metric in reader.run(ref).metrics.values():
            assert len(metric.column.values) == len(PROMPTS)
            assert len(reader._rows) <= 2


COLLECT = """
import json, sys
from pathlib import Path
from cdpo.report.collect import collect
means = lambda found: {run["name"]: run["metrics"]["reward/mean"]["mean"] for run in found["runs"] if run["metrics"]}
print(json.dumps([means(collect(Path(sys.argv[1]))) for _ in range(5)]))
"""


def test_several_at_once(store):
    right = means(anew(store))
    (store.root / FILE).unlink()
    words = [sys.executable, "-c", COLLECT, str(store.root)]
    readers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [json.loads(reader.communicate(timeout=120)[0]) for reader in readers]
    assert found == [[right] * 5] * 3


ACTS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "discard", "damage", "again", "look", "tag"]), st.integers(0, 5)),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=ACTS)
def test_whatever_happens_to_a_store_it_is_as_without_an_index(acts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("acts")
    store = Store(folder / ".cdpo")
    add_run(store, "a", 0)
    made = {}
    for act, at in acts:
        if act == "add":
            made[at] = add_run(store, f"r{at // 2}", at, at / 10, tag=f"t{at % 2}")
        elif act == "remove" and at in made:
            store.remove_ref(f"t{at % 2}", f"r{at // 2}_s{at}")
        elif act == "discard" and at in made and store.find(made[at][1]) is not None:
            store.discard(made[at][1])
        elif act == "damage" and at in made and (path := store.find(made[at][1])) is not None:
            (path / "out" / "scores.parquet").write_bytes(b"PAR1")
        elif act == "again" and at in made and store.find(made[at][1]) is not None:
            scored_again(store, made[at][1], at)
        elif act == "tag":
            collect(store.root, f"t{at % 2}")
        else:
            collect(store.root)
    kept = collect(store.root)
    copy = folder / "copy"
    shutil.copytree(store.root, copy, ignore=shutil.ignore_patterns(FILE))
    assert kept == collect(copy)
