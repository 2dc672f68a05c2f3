"""Disks that are full, read-only, silent or gone: told in one line, nothing half published, and then it goes on.

The disk is a real one, a small tmpfs, wherever that can be had; silence of a network file system is injected in the
real processes by `faults/sitecustomize.py`.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from engine_bench import Bench, of_kind, wait_for
from torture_reader import lives, lost
from torture_step import INTERVAL

from cdpo.files import read_json_lines

HERE = Path(__file__).parent
FULL = "no space is left on its disk; make room there (`cdpo gc` shows what can go)"


def mount(*words):
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here ({done.stderr.strip()}): that needs root")


@pytest.fixture
def disk(tmp_path):
    """A disk of 600 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=600k", "tmpfs", place)
    yield place
    # a detached one goes when the last process has closed its files
    subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)


@pytest.fixture
def on_disk(disk, tmp_path):
    """A bench whose store is on that disk, and all else elsewhere."""
    bench = Bench(tmp_path)
    (disk / "store").mkdir()
    (tmp_path / "store").symlink_to(disk / "store")
    yield bench
    bench.close()


def fill(place, leave=0):
    """Fill a disk but for so many bytes."""
    free = os.statvfs(place)
    (place / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - leave))


def reason(events):
    """Why the one step failed: one line, without a traceback."""
    (failed,) = of_kind(events, "step_failed")
    assert "\n" not in failed["reason"]
    assert not [line for line in failed["tail"] if "Traceback" in line]
    return failed["reason"]


def whole(bench):
    """How many steps are finished, each of them intact."""
    finished = bench.store.finished().values()
    assert [bench.store.intact(path) for path in finished] == [None] * len(finished)
    return len(finished)


def test_a_disk_that_fills_up_at_any_moment_of_a_step(on_disk, disk):
    """With more and more pages free an attempt comes further and further, and says why it failed; the last is whole."""
    on_disk.plan({"a": []}, a={"size": 20_000})
    reasons = []
    for pages in range(40):
        fill(disk, leave=pages * 4096)
        code, events = on_disk.run()
        (disk / "filler").unlink()
        if code == 0:
            break
        assert code == 1
        text = events[-1]["text"] if events[-1]["event"] == "error" else reason(events)
        assert FULL in text, text
        reasons.append(text)
        assert whole(on_disk) == 0
    assert code == 0
    assert whole(on_disk) == 1
    assert any("executing/" in text for text in reasons), "not even begun"
    assert len([text for text in reasons if "then `cdpo execute` goes on" in text]) > 2, "by the worker"
    assert not on_disk.store.working()


def test_a_disk_that_is_full_when_progress_and_metrics_are_written(on_disk, disk, tmp_path):
    gate = tmp_path / "gate"
    on_disk.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    process = on_disk.execute()
    assert wait_for(lambda: on_disk.told()["begin", "a"] == 1)
    fill(disk)
    # what is left of a file's last page is room, too
    for path in disk.glob("store/work/*/events.jsonl"):
        path.open("ab").write(b"\n" * (4096 - path.stat().st_size % 4096))
    (next(disk.glob("store/work/*")) / "events.jsonl").touch()
    gate.touch()
    code, events = on_disk.finish(process)
    assert code == 1
    assert FULL in reason(events)
    assert [event["by"][:9] for event in of_kind(events, "step_blocked")] == ["TRIVIAL/a"]
    (disk / "filler").unlink()
    assert on_disk.run()[0] == 0
    assert whole(on_disk) == 2


def test_a_disk_that_is_full_when_a_checkpoint_is_written(on_disk, disk, tmp_path):
    """The next execute goes on from the checkpoint before."""
    diary = tmp_path / "units.jsonl"
    on_disk.plan({"a": []}, a={"units": 40, "unit_seconds": 0.02, "diary": str(diary)})
    modules = {"TRIVIAL": str(HERE / "torture_step.py")}
    process = on_disk.execute(modules=modules)
    assert wait_for(lambda: len(lives(diary)) > 10)
    fill(disk)
    code, events = on_disk.finish(process)
    assert code == 1
    assert FULL in reason(events)
    (disk / "filler").unlink()
    assert on_disk.run(modules=modules)[0] == 0
    again = [line["unit"] for line in lives(diary) if line["what"] == "unit"]
    assert len(again) <= 40 + INTERVAL
    assert max(lost(lives(diary))) <= INTERVAL
    assert whole(on_disk) == 1


def test_a_read_only_store_does_for_what_is_finished_and_is_told_otherwise(on_disk, disk):
    plan = on_disk.plan({"a": [], "b": ["a"]})
    first = next(iter(plan.steps))
    assert on_disk.run(keys=[first])[0] == 0
    mount("-o", "remount,ro", disk)
    assert on_disk.run(keys=[first])[0] == 0
    assert not on_disk.store.is_locked(first)
    code, events = on_disk.run()
    assert code == 1
    assert "it is read-only; make it writable, or name another store" in events[-1]["text"]
    mount("-o", "remount,rw", disk)
    assert on_disk.run()[0] == 0
    assert whole(on_disk) == 2


def test_a_store_that_becomes_read_only_while_a_step_runs(on_disk, disk, tmp_path):
    gate = tmp_path / "gate"
    on_disk.plan({"a": [], "b": []}, a={"gate": str(gate)}, b={"gate": str(gate)})
    process = on_disk.execute(devices={"cpu_workers": 1})
    assert wait_for(lambda: on_disk.told()["begin", "a"] == 1)
    # the log is open for writing, so that the disk cannot be remounted; what is mounted over it can be read-only
    mount("--bind", disk, disk)
    mount("-o", "remount,ro,bind", disk)
    gate.touch()
    code, events = on_disk.finish(process)
    subprocess.run(["umount", "--lazy", disk], check=True)
    assert code == 1
    reasons = {event["name"]: event["reason"] for event in of_kind(events, "step_failed")}
    assert set(reasons) == {"a", "b"}
    assert all("it is read-only" in text for text in reasons.values()), reasons
    assert on_disk.run()[0] == 0
    assert whole(on_disk) == 2


def test_a_store_in_two_file_systems_is_refused_before_anything_runs(bench, disk):
    bench.plan({"a": []})
    bench.store.root.mkdir()
    bench.store.steps.symlink_to(disk)
    code, events = bench.run()
    assert code == 1
    assert f"{bench.store.steps}: on another file system than {bench.store.root}" in events[-1]["text"]
    assert not bench.told()
    bench.store.steps.unlink()
    assert bench.run()[0] == 0


@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_two_executions_share_a_store_that_has_no_flock(bench, monkeypatch, error):
    without = [{"event": "fcntl.flock", "below": str(bench.store.root), "error": error}]
    monkeypatch.setenv("FAULTS", json.dumps(without))
    bench.paths += f":{HERE / 'faults'}"
    gate = bench.folder / "gate"
    shape = {name: [] for name in "abcd"}
    bench.plan(shape, a={"gate": str(gate)}, b={"seconds": 0.1})
    first = bench.execute()
    assert wait_for(lambda: bench.told()["begin", "a"] == 1)
    # its claim passed to the worker: whoever started that may die
    first.kill()
    first.wait()
    both = [bench.execute(), bench.execute()]
    assert bench.happened("step_adopted")
    gate.touch()
    assert [bench.finish(process)[0] for process in both] == [0, 0]
    assert {bench.told()[what, name] for what in ("begin", "end") for name in shape} == {1}
    assert list(bench.store.locks.iterdir()) == []


def test_a_store_that_is_unmounted_is_told_and_nothing_is_written_in_its_place(bench, tmp_path):
    gate, place, real = tmp_path / "gate", bench.store.root, tmp_path / "real"
    for folder in (place, real):
        folder.mkdir()
    mount("--bind", real, place)
    bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    process = bench.execute()
    assert wait_for(lambda: bench.told()["begin", "a"] == 1)
    subprocess.run(["umount", "--lazy", place], check=True)
    code, events = bench.finish(process)
    assert code == 1
    assert f"{place}: this store is gone, removed or with its file system; bring it back" in events[-1]["text"]
    gate.touch()
    assert bench.none_left()
    assert list(place.iterdir()) == []
    mount("--bind", real, place)
    assert bench.run()[0] == 0
    assert whole(bench) == 2
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize("error", ["EIO", "ESTALE"])
def test_a_store_that_does_not_answer_for_a_while_loses_no_work(bench, monkeypatch, error):
    """As when the server of a network file system is started again: the worker, which is luckier, runs on."""
    silence, gate = bench.folder / "silence", bench.folder / "gate"
    how = {"below": str(bench.store.root), "error": error, "while": str(silence), "program": "execute.py"}
    monkeypatch.setenv("FAULTS", json.dumps([{"event": event, **how} for event in ("open", "os.scandir", "os.stat")]))
    bench.paths += f":{HERE / 'faults'}"
    bench.plan({"a": [], "b": ["a"], "c": []}, a={"gate": str(gate)}, c={"gate": str(gate)})
    orphaned = bench.execute(devices={"cpu_workers": 1})
    assert wait_for(lambda: bench.told()["begin", "a"] == 1)
    orphaned.kill()
    orphaned.wait()
    # one step that is adopted, and one of its own
    process = bench.execute()
    assert wait_for(lambda: bench.told()["begin", "c"] == 1)
    silence.touch()
    time.sleep(0.5)
    gate.touch()
    assert wait_for(lambda: len(list(bench.store.steps.glob("*/*"))) == 2)
    time.sleep(0.5)
    assert process.poll() is None
    silence.unlink()
    code, events = bench.finish(process)
    assert code == 0
    assert {bench.told()["begin", name] for name in "abc"} == {1}
    notes = [event["text"] for event in of_kind(events, "note")]
    assert len([text for text in notes if "does not answer; see to that" in text]) == 1
    assert len([text for text in notes if "answers again" in text]) == 1
    assert not of_kind(events, "step_failed")
    assert [each["key"] for each in read_json_lines(bench.store.events) if each["event"] == "step_done"]
