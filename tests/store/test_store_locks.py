"""A lock lives as long as any process that inherited it, and its file may go while others wait for it."""

import subprocess
import sys
import threading

from cdpo.store import Store, locks

KEY = "ab" * 32


def test_a_child_holds_the_lock_after_its_parent_closed_it(tmp_path):
    path = tmp_path / "x.lock"
    held = locks.acquire(path)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=held.descriptors)
    held.hand_over(child.pid)
    assert locks.is_held(path)
    assert locks.acquire(path) is None
    child.communicate()
    assert not locks.is_held(path)


def test_asking_leaves_no_file(tmp_path):
    assert not locks.is_held(tmp_path / "x.lock")
    assert list(tmp_path.iterdir()) == []


def test_a_step_is_locked_while_a_rank_lives(tmp_path):
    store = Store(tmp_path)
    lock = store.lock(KEY)
    rank = locks.acquire(store.alive_path(KEY), shared=True)
    other = locks.acquire(store.alive_path(KEY), shared=True)
    lock.release()
    assert store.is_locked(KEY)
    assert store.lock(KEY) is None
    rank.release()
    assert store.lock(KEY) is None
    other.release()
    assert store.lock(KEY) is not None


def test_removed_lock_files_never_let_two_in(tmp_path):
    """Four processes take and remove one lock file; a counter that only the holder touches stays exact."""
    path, counter = tmp_path / "x.lock", tmp_path / "counter"
    counter.write_text("0")
    code = (
        "import sys, pathlib; from cdpo.store import locks; path, counter = map(pathlib.Path, sys.argv[1:])\n"
        "for _ in range(150):\n"
        "    held = locks.acquire(path, wait=True)\n"
        "    counter.write_text(str(int(counter.read_text()) + 1))\n"
        "    held.release(remove=True)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(counter)]
    threads = [threading.Thread(target=subprocess.run, args=(command,), kwargs={"check": True}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "600"
