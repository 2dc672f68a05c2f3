"""The index: what was worked out once is the same as what is worked out now, whatever happened in between."""

import json
import multiprocessing
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdpo.report import collect as module
from cdpo.report.collect import collect, compare
from cdpo.report.index import FILE, Index
from cdpo.store import Store
from tests.results.made import PROMPTS, finish, key, record


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
    assert Index(store.root / FILE).look("collected", [json.dumps(["runs", None, True])]) is not None


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


def _collect_often(root, queue):
    queue.put([means(collect(root)) for _ in range(5)])


def test_several_at_once(store):
    right = means(anew(store))
    (store.root / FILE).unlink()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    readers = [context.Process(target=_collect_often, args=(store.root, queue)) for _ in range(3)]
    for reader in readers:
        reader.start()
    found = [each for _ in readers for each in queue.get(timeout=120)]
    for reader in readers:
        reader.join(timeout=60)
    assert found == [right] * 15


ACTS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "discard", "damage", "look", "tag"]), st.integers(0, 5)), max_size=12
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
        elif act == "tag":
            collect(store.root, f"t{at % 2}")
        else:
            collect(store.root)
    kept = collect(store.root)
    copy = folder / "copy"
    shutil.copytree(store.root, copy, ignore=shutil.ignore_patterns(FILE))
    assert kept == collect(copy)
