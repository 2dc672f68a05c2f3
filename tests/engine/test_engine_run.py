"""The local engine on real processes: order, caching, failures, what is published."""

import json
import os

import pytest
from engine_bench import make_plan, of_kind

from cdpo.engine.status import status
from cdpo.errors import UsageError
from cdpo.files import read_json, write_json

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def states(bench, plan):
    return {each["name"]: each["state"] for each in status(plan, bench.store)}


def test_runs_in_order_and_publishes_whole_steps(bench):
    plan = bench.plan(DIAMOND)
    assert set(states(bench, plan).values()) == {"waiting"}
    code, events = bench.run()
    assert code == 0
    assert [event["event"] for event in events[:2]] == ["plan", "step_started"]
    assert events[-1]["event"] == "finished"
    assert events[-1]["done"] == 4
    assert states(bench, plan) == dict.fromkeys(DIAMOND, "done")
    last = next(step for step in plan.steps.values() if step.name == "d")
    path = bench.store.find(last.key)
    assert path == bench.store.steps / "TRIVIAL" / f"d-{last.key[:12]}"
    assert sorted(each.name for each in path.iterdir()) == [
        "events.jsonl", "log.txt", "manifest.json", "metrics.jsonl", "out", "step.json"
    ]  # fmt: skip
    assert (path / "out" / "value.txt").read_text() == "a\nb\na\nc\nd\n"
    assert "hello from d" in (path / "log.txt").read_text()
    manifest = read_json(path / "manifest.json")
    assert manifest["key"] == last.key
    assert manifest["params"] == last.params
    assert manifest["inputs"] == last.inputs
    assert manifest["summary"] == {"length": 2, "visible": ""}
    assert set(manifest["outputs"]) == {"value.txt", "model.safetensors"}
    assert manifest["versions"]["torch"]
    assert len(manifest["code"]) == 64
    assert not list((bench.store.root / "work").iterdir())
    assert [path.name for path in bench.store.locks.iterdir()] == []


def test_a_second_execution_runs_nothing(bench):
    bench.plan(DIAMOND)
    assert bench.run()[0] == 0
    code, events = bench.run()
    assert code == 0
    assert [event["event"] for event in events] == ["plan", "finished"]
    assert events[0]["cached"] == 4
    assert set(bench.told().values()) == {1}


def test_only_chosen_steps_and_what_they_need(bench):
    plan = bench.plan(DIAMOND)
    keys = {step.name: key for key, step in plan.steps.items()}
    assert bench.run(keys=[keys["b"]])[0] == 0
    assert states(bench, plan) == {"a": "done", "b": "done", "c": "waiting", "d": "waiting"}


def test_a_failure_is_shown_with_its_log_and_blocks_only_its_descendants(bench):
    plan = bench.plan(DIAMOND, b={"raise": "boom"})
    code, events = bench.run()
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["reason"] == "ValueError: boom"
    assert failed["tail"][-1] == "ValueError: boom"
    assert failed["log"].endswith("attempt-1.log")
    assert os.path.exists(failed["log"])
    (blocked,) = of_kind(events, "step_blocked")
    assert blocked["name"] == "d"
    assert blocked["by"].startswith("TRIVIAL/b-")
    assert states(bench, plan) == {"a": "done", "b": "failed", "c": "done", "d": "blocked"}
    error = next(each for each in status(plan, bench.store) if each["name"] == "b")
    assert error["error"] == "ValueError: boom"
    # no blind retries within an execution; the next one tries again, with a log of its own
    assert bench.told()["begin", "b"] == 1
    code, events = bench.run()
    assert code == 1
    assert of_kind(events, "step_failed")[0]["log"].endswith("attempt-2.log")


def test_a_refusal_has_a_message_and_no_traceback(bench):
    bench.plan({"a": []}, a={"refuse": "row 7 has no prompt"})
    code, events = bench.run()
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["reason"] == "row 7 has no prompt"
    assert not any("Traceback" in line for line in failed["tail"])


def test_a_worker_that_vanishes_is_a_failure_with_its_last_words(bench):
    bench.plan({"a": []}, a={"exit": 9})
    code, events = bench.run()
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["reason"] == "ended with exit code 9"
    assert failed["tail"] == ["hello from a", "the last words"]


def test_fail_fast_starts_nothing_more(bench):
    shape = {name: [] for name in "abcdef"}
    bench.plan(shape, a={"raise": "boom"})
    code, events = bench.run(fail_fast=True, devices={"cpu_workers": 1})
    assert code == 1
    assert len(of_kind(events, "step_started")) == 1


def test_a_note_at_the_very_end_of_a_step_is_passed_on(bench):
    """The step's folder is published, and so moved, before anybody can have read it there."""
    bench.plan({"a": []}, a={"note": "half of it is saturated"})
    code, events = bench.run()
    assert code == 0
    assert [event["text"] for event in of_kind(events, "note")] == ["half of it is saturated"]


def test_a_damaged_step_is_reported_moved_aside_and_made_again(bench):
    plan = bench.plan(DIAMOND)
    assert bench.run()[0] == 0
    first = next(iter(plan.steps))
    path = bench.store.find(first)
    (path / "out" / "value.txt").write_text("short")
    code, events = bench.run()
    assert code == 0
    notes = [event["text"] for event in of_kind(events, "note")]
    assert any("value.txt: 5 bytes, not the 2" in text for text in notes)
    assert (path / "out" / "value.txt").read_text() == "a\n"
    (aside,) = (bench.store.aside / "TRIVIAL").iterdir()
    assert (aside / "out" / "value.txt").read_text() == "short"
    assert bench.told()["end", "a"] == 2
    assert bench.told()["end", "b"] == 1


def test_a_missing_manifest_counts_as_damage(bench):
    plan = bench.plan({"a": []})
    assert bench.run()[0] == 0
    (bench.store.find(next(iter(plan.steps))) / "manifest.json").unlink()
    assert bench.run()[0] == 0
    assert bench.told()["end", "a"] == 2


def test_redo_makes_one_step_again_and_keeps_its_children(bench):
    plan = bench.plan(DIAMOND)
    assert bench.run()[0] == 0
    bench.store.discard(next(iter(plan.steps)))
    assert states(bench, plan)["a"] == "waiting"
    assert bench.run()[0] == 0
    assert bench.told()["end", "a"] == 2
    assert sum(bench.told().values()) == 10


def test_an_evicted_step_is_remade_only_when_a_step_needs_it(bench):
    from cdpo.store.removal import evict

    plan = bench.plan({"a": [], "b": ["a"]})
    keys = {step.name: key for key, step in plan.steps.items()}
    assert bench.run()[0] == 0
    path = bench.store.find(keys["a"])
    assert evict(bench.store, path) == 1000
    assert states(bench, plan) == {"a": "evicted", "b": "done"}
    assert bench.run()[0] == 0
    assert bench.told()["end", "a"] == 1
    bench.store.discard(keys["b"])
    assert bench.run()[0] == 0
    assert bench.told()["end", "a"] == 2
    assert states(bench, plan) == {"a": "done", "b": "done"}


def test_what_cannot_be_run_is_refused_before_anything_starts(bench):
    from cdpo.config.devices import Devices
    from cdpo.engine.local.engine import LocalEngine

    plan = make_plan(DIAMOND, bench.diary)
    last = next(step for step in plan.steps.values() if step.name == "d")
    last.unavailable = "SAIL comes later"
    engine = LocalEngine(bench.store, Devices(gpus=[]), modules={})
    with pytest.raises(UsageError, match="SAIL comes later"):
        engine.run(plan)
    assert not bench.diary.exists()


def test_an_input_that_is_not_here_is_refused_before_anything_starts(bench):
    from cdpo.config.devices import Devices
    from cdpo.engine.local.engine import LocalEngine

    plan = make_plan(DIAMOND, bench.diary)
    last = next(step for step in plan.steps.values() if step.name == "d")
    last.inputs["model"] = {"hub": "some/model", "kind": "model", "revision": None}
    with pytest.raises(UsageError, match="its model is not on this machine"):
        LocalEngine(bench.store, Devices(gpus=[]), modules={}).run(plan)
    assert not bench.diary.exists()


def test_a_step_that_cannot_be_started_fails_and_the_others_go_on(bench):
    plan = bench.plan({"a": [], "b": []})
    keys = {step.name: key for key, step in plan.steps.items()}
    bench.store.work(keys["a"]).parent.mkdir(parents=True)
    bench.store.work(keys["a"]).write_text("a file where a folder should be")
    code, events = bench.run()
    assert code == 1
    assert "cannot be started" in of_kind(events, "step_failed")[0]["reason"]
    assert states(bench, plan)["b"] == "done"
    assert not bench.store.is_locked(keys["a"])


def test_a_store_that_is_copied_elsewhere_works(bench, tmp_path):
    import shutil

    from cdpo.store import Store

    plan = bench.plan(DIAMOND)
    assert bench.run()[0] == 0
    moved = tmp_path / "moved"
    shutil.copytree(bench.store.root, moved)
    shutil.rmtree(bench.store.root)
    bench.store = Store(moved)
    assert states(bench, plan) == dict.fromkeys(DIAMOND, "done")
    assert all(bench.store.intact(path) is None for path in bench.store.finished().values())


def test_steps_finished_by_another_name_are_found(bench):
    plan = bench.plan({"a": [], "b": ["a"]})
    assert bench.run()[0] == 0
    for step in plan.steps.values():
        step.name = "renamed-" + step.name
    write_json(bench.folder / "plan.json", plan.to_json())
    code, events = bench.run()
    assert code == 0
    assert events[0]["cached"] == 2


def test_the_store_keeps_a_history(bench):
    bench.plan({"a": []})
    bench.run()
    kinds = [json.loads(line)["event"] for line in bench.store.events.read_text().splitlines()]
    assert kinds == ["plan", "step_started", "step_done", "finished"]


def test_a_worker_can_be_started_by_hand(bench):
    import subprocess
    import sys

    plan = bench.plan({"a": []}, a={"raise": "boom"})
    assert bench.run()[0] == 1
    work = bench.store.work(next(iter(plan.steps)))
    described = read_json(work / "step.json")
    described["params"].pop("raise")
    write_json(work / "step.json", described)
    assert subprocess.run([sys.executable, "-m", "cdpo.engine.worker", str(work)], check=False).returncode == 0
    assert states(bench, plan) == {"a": "done"}


def test_inputs_that_cdpo_makes_itself_are_made_in_the_work_folder(bench):
    plan = bench.plan({"a": []})
    (step,) = plan.steps.values()
    step.inputs["model"] = {"built": {"kind": "tiny", "seed": 0}}
    step.params["list"] = "model"
    write_json(bench.folder / "plan.json", plan.to_json())
    code, events = bench.run()
    assert code == 0, of_kind(events, "step_failed")
    manifest = read_json(bench.store.find(step.key) / "manifest.json")
    assert manifest["inputs"] == step.inputs
    assert "config.json" in manifest["summary"]["listed"]


def test_what_a_worker_left_that_was_killed_while_tidying_is_removed(bench):
    plan = bench.plan({"a": [], "b": []})
    assert bench.run()[0] == 0
    with_work, with_lock = plan.steps
    bench.store.work(with_work).mkdir()
    bench.store.lock(with_lock).release()
    assert bench.run()[0] == 0
    assert bench.store.working() == []
    assert list(bench.store.locks.iterdir()) == []


def test_an_input_whose_contents_changed_is_refused_and_made_again_on_demand(bench):
    """Of its old size, and with a manifest that says otherwise: what no `stat` shows."""
    plan = bench.plan({"a": [], "b": ["a"]})
    assert bench.run()[0] == 0
    a, b = (next(key for key, step in plan.steps.items() if step.name == name) for name in "ab")
    value = bench.store.find(a) / "out" / "value.txt"
    whole = value.read_bytes()
    value.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    bench.store.discard(b)
    code, events = bench.run()
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert f"a-{a[:12]} is damaged: {value}: its contents are not those that were published" in failed["reason"]
    assert f"`cdpo redo {a[:12]}`" in failed["reason"]
    bench.store.discard(a)
    assert bench.run()[0] == 0
    assert value.read_bytes() == whole


def test_two_executions_know_of_each_other(bench):
    gate = bench.folder / "gate"
    bench.plan({"a": []}, a={"gate": str(gate)})
    first = bench.execute()
    assert bench.happened("step_started")
    second = bench.execute()
    assert bench.happened("step_adopted")
    gate.touch()
    codes, events = zip(*(bench.finish(each) for each in (first, second)), strict=True)
    assert codes == (0, 0)
    assert not of_kind(events[0], "note")
    assert f"another execute (process {first.pid}) works on this store too" in of_kind(events[1], "note")[0]["text"]
