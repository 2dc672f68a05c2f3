"""What must not end an execution, and what must not outlive a step."""

import errno
import os
import shutil
import signal
import time

import pytest
from engine_bench import of_kind, wait_for

from cdpo.engine import supervisors
from cdpo.engine.show.eta import Estimate
from cdpo.engine.show.reporter import Reporter
from cdpo.engine.watch import Follower, proc
from cdpo.files import append_json, write_text
from cdpo.journal import Journal
from cdpo.store import Store


def test_stop_on_a_copied_store_leaves_the_execution_on_the_original_alone(bench, tmp_path):
    bench.plan({"a": []}, a={"gate": str(tmp_path / "gate")})
    process = bench.execute()
    assert wait_for(lambda: bench.told()["begin", "a"] == 1)
    assert len(supervisors.living(bench.store)) == 1
    shutil.copytree(bench.store.root, tmp_path / "copy")
    assert supervisors.living(Store(tmp_path / "copy")) == []
    (tmp_path / "gate").touch()
    assert bench.finish(process)[0] == 0


def test_an_input_that_is_removed_meanwhile_is_named(bench, tmp_path):
    plan = bench.plan({"a": [], "wait": [], "b": ["a", "wait"]}, wait={"gate": str(tmp_path / "gate")})
    process = bench.execute()
    assert bench.happened("step_done")
    time.sleep(0.5)  # until the execution has taken note of it
    key = next(key for key, step in plan.steps.items() if step.name == "a")
    gone = bench.store.discard(key)
    (tmp_path / "gate").touch()
    code, events = bench.finish(process)
    assert code == 1
    assert "was removed meanwhile" in of_kind(events, "step_failed")[0]["reason"]
    assert gone.exists()
    assert bench.run()[0] == 0


@pytest.mark.parametrize("how", ["child", "daemon"])
def test_what_a_failed_step_left_running_is_ended(bench, how):
    plan = bench.plan({"a": []}, a={"leave": how})
    code, events = bench.run()
    assert code == 1
    assert of_kind(events, "step_failed")[0]["reason"] == "ValueError: left a child behind"
    assert not bench.workers()
    assert not bench.store.is_locked(next(iter(plan.steps)))


def test_a_lock_that_a_process_without_a_mark_still_holds_is_told(bench):
    bench.plan({"a": []}, a={"leave": "escapes"})
    assert bench.run()[0] == 1
    second = bench.execute()
    try:
        assert bench.happened("note")
    finally:
        assert wait_for(lambda: bench.told()["escaped", "a"] == 1)
        (escaped,) = [line.split()[2] for line in bench.diary.read_text().splitlines() if line.startswith("escaped")]
        os.kill(int(escaped), signal.SIGKILL)
        code, events = bench.finish(second)
    assert code == 1
    assert "still holds its lock" in of_kind(events, "note")[0]["text"]


class _Broken:
    def show(self, event):
        raise OSError(errno.ENOSPC, "No space left on device")

    tick = close = show


def test_a_full_disk_ends_neither_display_nor_history(bench, monkeypatch):
    plan = bench.plan({"a": []})
    reporter = Reporter(bench.store, plan, _Broken(), Estimate(1))
    monkeypatch.setattr(Store, "append_event", _Broken.show)
    reporter.emit("note", text="x")
    reporter.tick()


def test_a_torn_line_of_events_is_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "pro{"event": "note"}\n{"event": "progress"}\n')
    assert [each["event"] for each in Follower(path).new()] == ["progress"]


def _takes_a_part(descriptor, data, write=os.write):
    return write(descriptor, data[:5])


def test_a_line_that_the_disk_takes_in_part_is_taken_back(tmp_path, monkeypatch):
    append_json(tmp_path / "a.jsonl", {"n": 1})
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append("a", 1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", _takes_a_part)
            with pytest.raises(OSError, match=r"a\.jsonl"):
                append_json(tmp_path / "a.jsonl", {"n": 2})
            with pytest.raises(OSError, match="No space"):
                journal.append("b", 2)
        assert "b" not in journal
    assert (tmp_path / "a.jsonl").read_text() == '{"n": 1}\n'
    assert (tmp_path / "journal.jsonl").read_text() == '["a", 1]\n'


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"plan\.json"):
        write_text(tmp_path / "plan.json", "x")
    assert not list(tmp_path.iterdir())


def test_a_damaged_proc_json_is_as_good_as_none(tmp_path):
    (tmp_path / "proc.json").write_text("")
    assert proc(tmp_path) is None


def test_a_journal_survives_lines_that_are_no_items(tmp_path):
    (tmp_path / "j").write_text('["a", 1]\n12\n["b", 2]\n')
    with Journal(tmp_path / "j") as journal:
        assert journal.items == {"a": 1}
