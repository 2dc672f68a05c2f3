"""A step enters the store whole, once, and whatever kills its writer."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from store_bench import KEY, finish, manifest, work_of

from cdpo.errors import CdpoError, StepError
from cdpo.files import file_sha256, read_json
from cdpo.store import Store, publish

HERE = Path(__file__).parent


def test_a_published_step_is_found_and_whole(tmp_path):
    store = Store(tmp_path)
    path = finish(store)
    assert path == tmp_path / "steps" / "SFT" / f"tiny-{KEY[:12]}"
    assert store.finished() == {KEY[:12]: path}
    assert store.find(KEY) == store.find(KEY[:12], "SFT") == store.look("SFT", "other name", KEY) == path
    assert store.find("cd" * 32) is None
    assert store.intact(path) is None
    outputs = store.manifest(path)["outputs"]
    assert outputs["value.txt"] == {"size": 5, "sha256": file_sha256(path / "out" / "value.txt")}
    assert set(outputs) == {"value.txt", "deep/model.safetensors"}
    assert store.past_seconds("SFT") == [1.5]
    assert not store.work(KEY).exists()


def test_an_empty_store_has_nothing_and_makes_nothing(tmp_path):
    store = Store(tmp_path / "none")
    assert store.finished() == {}
    assert store.find(KEY) is None
    assert store.working() == []
    assert store.read_refs() == []
    assert store.past_seconds("SFT") == []
    assert not store.is_locked(KEY)
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "out" / "value.txt").unlink(), "value.txt: missing"),
        (lambda path: (path / "out" / "value.txt").write_text("hello!"), "6 bytes, not the 5"),
        (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "manifest.json").unlink(), "cannot be read"),
    ],
)
def test_damage_is_seen(tmp_path, damage, said):
    store = Store(tmp_path)
    path = finish(store)
    damage(path)
    assert said in store.intact(path)


def test_the_loser_of_a_race_drops_its_own_and_a_difference_is_noted(tmp_path):
    store = Store(tmp_path)
    path = finish(store)
    assert finish(store, name="renamed") == path
    assert not store.events.exists()
    assert finish(store, text="HELLO") == path
    assert (path / "out" / "value.txt").read_text() == "hello"
    assert "two writers differ in value.txt" in json.loads(store.events.read_text())["text"]
    assert not store.work(KEY).exists()


def test_a_link_is_refused(tmp_path):
    store = Store(tmp_path)
    work = work_of(store)
    (work / "out" / "link").symlink_to("/etc/hostname")
    with pytest.raises(StepError, match="symbolic link"):
        store.publish(KEY, "SFT", "tiny", work, manifest())


def test_a_staged_step_is_completed_by_whoever_comes(tmp_path):
    store = Store(tmp_path)
    for moved in (False, True):
        work = work_of(store)
        publish.stage(work, {"key": KEY, "pipeline": "SFT", "name": "tiny", **manifest()})
        if moved:
            (work / "out").rename(work / "publish" / "out")
        assert publish.is_staged(work)
        assert store.finished() == {}
        path = publish.complete(store, work)
        assert store.intact(path) is None
        store.discard(KEY)


def test_two_processes_publish_one_step_at_once(tmp_path):
    store = Store(tmp_path)
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from cdpo.store import Store;"
        "from store_bench import *; store = Store(pathlib.Path(sys.argv[2]));"
        "rooms = [Store(store.root / ('writer' + sys.argv[3]))];"
        "keys = [format(n, '064x')[::-1] for n in range(40)];"
        "works = [work_of(rooms[0], key) for key in keys]; print('ready', flush=True); sys.stdin.readline();"
        "[store.publish(key, 'SFT', 'tiny' + sys.argv[3] * (n % 2), work, manifest())"
        " for n, (key, work) in enumerate(zip(keys, works))]"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(HERE), str(tmp_path), which], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for which in "ab"
    ]
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    assert len(list((tmp_path / "steps" / "SFT").iterdir())) == 40
    assert all(store.intact(path) is None for path in store.finished().values())
    assert not store.events.exists()


def write_and_die(store, operation):
    """In a process of its own: publish KEY, and SIGKILL itself before its `operation`-th call on the file system."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event == "open" or event.startswith(("os.", "shutil.", "fcntl.")):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    work = store.work(KEY)
    if not publish.is_staged(work):
        shutil.rmtree(work, ignore_errors=True)
        work_of(store)
    sys.addaudithook(hook)
    if not publish.is_staged(work):
        publish.stage(work, {"key": KEY, "pipeline": "SFT", "name": "tiny", **manifest()})
    publish.complete(store, work)
    os._exit(0)


def test_a_writer_killed_at_any_operation_leaves_a_whole_step_or_none(tmp_path):
    store = Store(tmp_path / "store")
    ends = []
    for operation in range(1, 500):
        ends.append(write_and_die(store, operation))
        path = store.find(KEY)
        if path is None:
            # the next attempt completes it, or makes it again where it was not staged
            assert ends[-1] == -signal.SIGKILL
            assert write_and_die(store, 0) == 0
            path = store.find(KEY)
        assert store.intact(path) is None
        for name, wanted in store.manifest(path)["outputs"].items():
            assert file_sha256(path / "out" / name) == wanted["sha256"]
        shutil.rmtree(store.root)
        if ends[-1] == 0:
            break
    assert ends[-1] == 0
    assert len(ends) > 40


def test_discard_refuses_what_is_not_there_or_being_made(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(CdpoError, match="no finished step"):
        store.discard(KEY)
    path = finish(store)
    lock = store.lock(KEY)
    with pytest.raises(CdpoError, match="being made"):
        store.discard(KEY[:12])
    store.unlock(KEY, lock)
    aside = store.discard(KEY)
    assert not path.exists()
    assert read_json(aside / "manifest.json")["key"] == KEY
    assert os.listdir(store.locks) == []
