"""What gc, clear and evict would remove, and that they remove exactly that."""

import os
from pathlib import Path

import pytest
from store_bench import finish, work_of

from cdpo.files import write_json
from cdpo.store import Store
from cdpo.store.removal import evict, plan_clear, plan_gc, remove, size_of

A, B, C = ("aa" * 32, "bb" * 32, "cc" * 32)


def listing(store):
    return sorted(
        os.path.relpath(os.path.join(room, name), store.root)
        for room, _, names in os.walk(store.root)
        for name in names
    )


def store_with(tmp_path):
    store = Store(tmp_path / "store")
    for key, name in ((A, "a"), (B, "b"), (C, "c")):
        finish(store, key, name=name)
    store.write_ref("one", "run1", {"steps": [A, B]})
    store.write_ref("two", "run2", {"steps": [A]})
    return store


@pytest.mark.fault(29)
def test_clear_takes_the_runs_of_a_tag_and_what_only_they_need(tmp_path):
    store = store_with(tmp_path)
    before = listing(store)
    planned = plan_clear(store, "one")
    assert listing(store) == before
    assert [(each.kind, each.path.name) for each in planned] == [("ref", "run1.json"), ("step", f"b-{B[:12]}")]
    assert planned[1].bytes == size_of(planned[1].path) > 100
    assert list(remove(store, planned)) == planned
    assert set(store.finished()) == {A[:12], C[:12]}
    assert [ref["name"] for ref in store.read_refs()] == ["run2"]
    gone = set(before) - set(listing(store))
    assert all(name.startswith(("refs/one/", f"steps/SFT/b-{B[:12]}/")) for name in gone)


@pytest.mark.fault(29)
def test_clear_of_a_tag_leaves_tags_and_runs_that_begin_like_it(tmp_path):
    store = store_with(tmp_path)
    store.write_ref("one-more", "run1", {"steps": [B]})
    store.write_ref("on", "run1x", {"steps": [C]})
    planned = plan_clear(store, "one")
    assert [(each.kind, each.path.parent.name, each.path.name) for each in planned] == [("ref", "one", "run1.json")]
    list(remove(store, planned))
    assert sorted((ref["tag"], ref["name"]) for ref in store.read_refs()) == [
        ("on", "run1x"),
        ("one-more", "run1"),
        ("two", "run2"),
    ]
    assert set(store.finished()) == {A[:12], B[:12], C[:12]}


def test_clear_keeps_what_a_plan_of_another_tag_needs(tmp_path):
    store = store_with(tmp_path)
    runs = [{"tag": "three", "steps": [B]}]
    write_json(store.plans / "p.json", {"runs": runs, "steps": [{"key": B}]})
    assert [each.kind for each in plan_clear(store, "one")] == ["ref"]


def test_gc_takes_what_nobody_needs(tmp_path):
    store = store_with(tmp_path)
    work_of(store, "dd" * 32)
    work_of(store, A)
    write_json(store.plans / "p.json", {"runs": [], "steps": [{"key": "ee" * 32}]})
    work_of(store, "ee" * 32)
    store.discard(C)
    planned = plan_gc(store)
    assert [(each.kind, each.path.name[:1]) for each in planned] == [("work", "a"), ("work", "d"), ("aside", "c")]
    assert list(remove(store, planned)) == planned
    assert store.working() == ["ee" * 32]
    assert plan_gc(store) == []
    assert set(store.finished()) == {A[:12], B[:12]}


def test_gc_takes_what_jobs_of_finished_steps_left(tmp_path):
    store = store_with(tmp_path)
    for key in (A, "ee" * 32):
        write_json(store.jobs / f"{key}.json", {})
        write_json(store.jobs / "slurm" / key / "1_0_log.out", {})
    planned = [each for each in plan_gc(store) if each.kind == "job"]
    assert [each.path.relative_to(store.jobs) for each in planned] == [Path(f"{A}.json"), Path("slurm") / A]
    assert list(remove(store, planned)) == planned
    assert sorted(path.stem for path in store.jobs.rglob("ee*")) == ["ee" * 32] * 2


def test_gc_leaves_running_steps_and_what_they_read(tmp_path):
    store = store_with(tmp_path)
    key = "dd" * 32
    write_json(
        work_of(store, key) / "step.json",
        {"key": key, "inputs": {}, "planned": {"data": {"step": C}, "model": {"step": A}}},
    )
    lock = store.lock(key)
    assert plan_gc(store, weights=[A]) == []
    store.unlock(key, lock)
    assert [each.kind for each in plan_gc(store, weights=[A])] == ["step", "weights", "work"]


def test_evicting_removes_weights_and_leaves_a_marker(tmp_path):
    store = store_with(tmp_path)
    path = store.find(A)
    (planned,) = [each for each in plan_gc(store, weights=[A]) if each.kind == "weights"]
    assert planned.bytes == 100
    assert list(remove(store, [planned])) == [planned]
    assert store.is_evicted(path)
    assert store.intact(path) is None
    assert (path / "out" / "value.txt").read_text() == "hello"
    assert not (path / "out" / "deep" / "model.safetensors").exists()
    assert evict(store, path) == 0
    assert A[:12] in store.finished()
    # other damage of an evicted step is still seen
    (path / "out" / "value.txt").unlink()
    assert "missing" in store.intact(path)


def test_an_evicted_step_is_replaced_when_it_is_made_again(tmp_path):
    store = store_with(tmp_path)
    evict(store, store.find(A))
    path = finish(store, A, name="a")
    assert not store.is_evicted(path)
    assert (path / "out" / "deep" / "model.safetensors").exists()


def test_a_step_in_use_is_not_removed(tmp_path):
    store = store_with(tmp_path)
    planned = plan_clear(store, "one")
    lock = store.lock(B)
    assert [each.kind for each in remove(store, planned)] == ["ref"]
    assert store.find(B) is not None
    store.unlock(B, lock)


def test_what_a_step_came_to_read_since_it_was_planned_is_left_alone(tmp_path):
    store = store_with(tmp_path)
    planned = [each for each in plan_clear(store, "one") if each.kind == "step"]
    reader = "dd" * 32
    write_json(store.work(reader) / "step.json", {"key": reader, "inputs": {}, "planned": {"model": {"step": B}}})
    lock = store.lock(reader)
    assert list(remove(store, planned)) == []
    assert B[:12] in store.finished()
    store.unlock(reader, lock)
    assert list(remove(store, planned)) == planned
