"""Publishing on disks that refuse: at whatever moment, a step is there whole or not at all, and the next try completes.

The small disk is a real tmpfs; single calls that fail are injected by an audit hook, in a process of its own.
"""

import errno
import os
import shutil
import subprocess
import sys

import pytest
import safetensors
from store_bench import KEY, finish, manifest, work_of

from cdpo import disk
from cdpo.errors import CdpoError
from cdpo.files import file_sha256
from cdpo.store import Store, publish, transfer


@pytest.fixture
def small(tmp_path):
    """A disk of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here ({done.stderr.strip()}): that needs root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_fills_up_at_any_moment_of_publishing(small):
    store = Store(small / "store")
    failures = []
    for pages in range(12):
        work = work_of(store)
        free = os.statvfs(small)
        (small / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - pages * 4096))
        try:
            store.publish(KEY, "SFT", "tiny", work, manifest())
        except OSError as error:
            failures.append(disk.explained(error, work))
        (small / "filler").unlink()
        if store.finished() == {}:
            # whoever comes next, without the work being done again where it was staged
            if publish.is_staged(work):
                publish.complete(store, work)
            else:
                shutil.rmtree(work)
                finish(store)
        assert store.intact(store.find(KEY)) is None
        assert not work.exists()
        shutil.rmtree(store.discard(KEY))
    assert 1 < len(failures) < 12
    assert all("no space is left on its disk" in text for text in failures)


OPERATIONS = ("open", "os.rename", "os.mkdir", "os.listdir", "os.scandir", "os.remove", "shutil.copyfile")


def publish_with_a_fault(store, error, operation):
    """In a process of its own: publish what is staged or KEY made anew, and have the n-th call fail.

    Its exit code: 0 published, 1 not, 2 published and there were not so many calls.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    work, count = store.work(KEY), 0
    if not publish.is_staged(work) and not work.exists():
        work_of(store)

    def hook(event, arguments):
        nonlocal count
        if event in OPERATIONS and str(store.root) in str(arguments[0]):
            count += 1
            if count == operation:
                raise OSError(error, os.strerror(error), str(arguments[0]))

    sys.addaudithook(hook)
    code = 3
    try:
        if not publish.is_staged(work):
            publish.stage(work, {"key": KEY, "pipeline": "SFT", "name": "tiny", **manifest()})
        publish.complete(store, work)
        code = 0 if count >= operation else 2
    except OSError:
        code = 1
    finally:
        os._exit(code)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_call_of_publishing_may_fail(tmp_path, error):
    """What is in steps/ is whole, and the next try ends well."""
    ends = []
    while not ends or ends[-1] != 2:
        store = Store(tmp_path / str(len(ends)))
        ends.append(publish_with_a_fault(store, error, len(ends) + 1))
        if store.find(KEY) is None:
            assert ends[-1] == 1
            assert publish_with_a_fault(store, error, 0) == 0
        path = store.find(KEY)
        assert store.intact(path) is None
        assert len(list(store.steps.glob("*/*"))) == 1
        for name, wanted in store.manifest(path)["outputs"].items():
            assert file_sha256(path / "out" / name) == wanted["sha256"]
    assert ends.count(1) > 10


def test_a_store_on_another_disk_than_everything_else(small, tmp_path):
    here, there = Store(tmp_path / "store"), Store(small / "store")
    path = finish(there)
    assert there.intact(path) is None
    assert transfer.import_from(here, there).added == [here.find(KEY)]
    there.discard(KEY)
    assert transfer.import_from(there, here).added == [there.find(KEY)]
    assert there.find(KEY).stat().st_dev != here.find(KEY).stat().st_dev


def test_a_store_in_two_file_systems_is_refused(small, tmp_path):
    store = Store(tmp_path / "store")
    store.steps.mkdir(parents=True)
    store.check_rooms()
    (store.steps / "SFT").symlink_to(small)
    with pytest.raises(CdpoError, match="steps/SFT: on another file system than"):
        store.check_rooms()
    with pytest.raises(OSError) as raised:
        finish(store)
    assert raised.value.errno == errno.EXDEV
    (store.steps / "SFT").unlink()
    (store.steps / "SFT").mkdir()
    assert store.intact(publish.complete(store, store.work(KEY))) is None


def test_a_step_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    """Or a moment's silence of a file server would have finished work made again."""
    store = Store(tmp_path)
    path = finish(store)

    def silent(*words, **named):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    for name in ("stat", "open"):
        with monkeypatch.context() as patched:
            patched.setattr("os.stat" if name == "stat" else "builtins.open", silent)
            with pytest.raises(OSError, match="Input/output error"):
                store.intact(path)
    assert store.intact(path) is None


def test_a_lock_whose_file_cannot_be_removed_is_given_up_all_the_same(tmp_path, monkeypatch):
    store = Store(tmp_path)
    lock = store.lock(KEY)

    def read_only(*words, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.unlink", read_only)
        with pytest.raises(OSError):
            store.unlock(KEY, lock)
    assert not store.is_locked(KEY)
    assert store.lock(KEY) is not None


class SafetensorError(Exception):
    """As libraries raise that lose the system's error."""


def test_what_a_library_made_of_a_full_disk_is_understood(small):
    assert disk.explained(SafetensorError("I/O error"), small) is None
    # safetensors keeps the number in its text, and removes the part that it wrote
    said = safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert disk.explained(said, small).startswith(f"{small}: no space is left on its disk; make room there")
    free = os.statvfs(small)
    (small / "filler").write_bytes(b"x" * free.f_bavail * free.f_frsize)
    told = disk.explained(SafetensorError("I/O error"), small)
    assert told == f"{small}: no space is left on its disk; make room there (`cdpo gc` shows what can go) (I/O error)"
    (small / "filler").unlink()
    wrapped = RuntimeError("file write failed")
    wrapped.__cause__ = OSError(errno.EDQUOT, "Disk quota exceeded", "/home/anna/x")
    assert disk.explained(wrapped, small).startswith("/home/anna/x: the disk quota is used up")
    assert disk.explained(ValueError("bad rows"), small) is None
    assert "it is no longer there; was it removed, or its file system unmounted" in disk.examined(small / "gone")
