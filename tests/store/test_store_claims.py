"""Claims: locks of network file systems. One holder at a time, whoever dies; other machines' claims are left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from cdpo.errors import CdpoError
from cdpo.files import read_json_lines
from cdpo.store import Store, claims, filesystem, locks
from cdpo.store.claims import Owner

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store on a file system whose flock is not trusted."""
    monkeypatch.setattr(locks, "has_flock", lambda folder: False)
    return Store(tmp_path)


def claimed_by(path, **other):
    """Make `path` claimed by a process like this one but for `other`."""
    owner = replace(Owner.here(), **other)
    path.mkdir(parents=True)
    (path / owner.name).touch()
    return owner


def wait_for(condition, seconds):
    """Whether `condition()` became true in time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.005)
    return False


@pytest.fixture
def python():
    """Starts processes that run some code with claims in the place of flock; none outlives its test."""
    started = []

    def start(code, *arguments, **options):
        code = (
            "import sys; from cdpo.store import Store, claims, locks; locks.has_flock = lambda folder: False\n" + code
        )
        started.append(subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_claim_is_exclusive_and_leaves_nothing(store):
    lock = store.lock(KEY)
    assert store.is_locked(KEY)
    assert store.lock(KEY) is None
    store.unlock(KEY, lock)
    assert not store.is_locked(KEY)
    assert list(store.locks.iterdir()) == []


def test_one_at_a_time_whoever_is_killed(tmp_path, python):
    """Processes that take a claim in turns, and are killed in between; a file that only the holder makes is never there
    already, unless its maker is dead."""
    path, rng = tmp_path / "x.lock", random.Random(0)
    code = """
import os, pathlib, time
path, held = map(pathlib.Path, sys.argv[1:])
while True:
    claim = claims.acquire(path, wait=True)
    try:
        descriptor = os.open(held, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        maker = held.read_text()
        assert not (maker and claims._stat(int(maker))), f"{maker} holds it too"
        descriptor = os.open(held, os.O_TRUNC | os.O_WRONLY)
    os.write(descriptor, str(os.getpid()).encode())
    time.sleep(0.001)
    held.unlink()
    os.close(descriptor)
    with open(f"{held}.turns", "a") as stream:
        stream.write(".")
    claim.release()
"""
    held = tmp_path / "held"
    takers = [python(code, path, held, stderr=subprocess.PIPE) for _ in range(4)]
    turns = tmp_path / "held.turns"
    turns.touch()
    for _ in range(25):
        before = turns.stat().st_size
        assert wait_for(lambda before=before: turns.stat().st_size > before, 20), "nobody gets the claim any more"
        time.sleep(rng.uniform(0.0, 0.05))
        place = rng.randrange(4)
        takers[place].kill()
        assert takers[place].communicate()[1] == b""
        assert takers[place].returncode == -signal.SIGKILL
        takers[place] = python(code, path, held, stderr=subprocess.PIPE)
    before = turns.stat().st_size
    assert wait_for(lambda: turns.stat().st_size > before + 10, 20), "nobody gets the claim any more"
    for taker in takers:
        taker.kill()
        assert taker.communicate()[1] == b""
    last = claims.acquire(path)
    assert last is not None
    last.release()
    assert not [entry.name for entry in tmp_path.iterdir() if "held" not in entry.name]


def test_of_many_that_find_a_dead_claim_one_takes_it(tmp_path):
    ended = subprocess.Popen(["true"])
    pid = ended.pid
    ended.wait()
    for number in range(20):
        path = tmp_path / f"{number}.lock"
        claimed_by(path, pid=pid, start=1)
        got = []
        threads = [threading.Thread(target=lambda path=path, got=got: got.append(claims.acquire(path))) for _ in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(each is not None for each in got) == 1


def test_a_claim_is_handed_to_a_child_and_ends_with_it(store):
    lock = store.lock(KEY)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    lock.hand_over(child.pid)
    lock.release()
    assert store.is_locked(KEY)
    assert store.lock(KEY) is None
    child.communicate()
    assert not store.is_locked(KEY)
    assert store.lock(KEY) is not None


def test_a_child_takes_what_it_was_told_of_before_its_parent_handed_it_over(store, python):
    lock = store.lock(KEY)
    code = "import json; mine = locks.inherited(json.loads(sys.argv[1])); print(mine is not None, flush=True); input()"
    child = python(code, json.dumps(lock.described()), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"True\n"
    lock.hand_over(child.pid)
    assert claims.told(store.lock_path(KEY)).startswith(f"held by process {child.pid} on ")
    child.communicate(b"\n")
    assert not store.is_locked(KEY)


def test_a_child_that_ended_at_once_holds_nothing(store):
    lock = store.lock(KEY)
    child = subprocess.Popen(["true"])
    time.sleep(0.2)
    lock.hand_over(child.pid)
    child.wait()
    assert list(store.locks.iterdir()) == []


def test_whoever_comes_too_late_for_a_claim_does_not_get_it(store):
    lock = store.lock(KEY)
    said = lock.described()
    lock.release()
    other = claims.acquire(store.lock_path(KEY))
    assert claims.inherited(said) is None
    other.release()


def test_a_claim_lasts_while_anything_of_its_owners_session_lives(tmp_path, python):
    """As a lock that is inherited: what a killed worker left running keeps its step locked."""
    code = (
        "import os, subprocess, pathlib; claims.acquire(pathlib.Path(sys.argv[1]));"
        "print(subprocess.Popen(['sleep', '60']).pid, flush=True); os.kill(os.getpid(), 9)"
    )
    worker = python(code, tmp_path / "x.lock", stdout=subprocess.PIPE, start_new_session=True)
    left = int(worker.stdout.readline())
    worker.wait()
    worker.stdout.close()
    assert claims.acquire(tmp_path / "x.lock") is None
    os.kill(left, signal.SIGKILL)
    assert wait_for(lambda: claims.acquire(tmp_path / "x.lock") is not None, 5)


def test_claims_of_other_machines_are_held_and_told(store):
    elsewhere = {"host": "node7", "boot": "b", "machine": "m", "job": "4711"}
    claimed_by(store.lock_path(KEY), **elsewhere)
    assert store.is_locked(KEY)
    assert store.lock(KEY) is None
    told = store.lock_told(KEY)
    assert told.startswith("held by process ")
    assert "on node7 (job 4711); if that has ended, remove the folder " + str(store.lock_path(KEY)) in told


def test_the_batch_system_frees_what_an_ended_job_claimed(store):
    elsewhere = {"host": "node7", "boot": "b", "machine": "m"}
    claimed_by(store.lock_path(KEY), **elsewhere, job="4711")
    claimed_by(store.alive_path(KEY), **elsewhere, job="4711", pid=1)
    assert store.claiming_jobs(KEY) == {"4711"}
    assert not store.release_claim(KEY, "4712", "it ended")
    assert store.is_locked(KEY)
    assert store.release_claim(KEY, "4711", "its node failed")
    assert not store.is_locked(KEY)
    assert [each["text"] for each in read_json_lines(store.events)] == ["freed from job 4711: its node failed"]
    assert list(store.locks.iterdir()) == []


def test_a_job_that_is_started_again_takes_over_its_own_claim_alone(store, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    elsewhere = {"host": "node7", "boot": "b", "machine": "m"}
    claimed_by(store.lock_path(KEY), **elsewhere, job="4711")
    # another process of the same start of the job
    assert store.lock(KEY) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    lock = store.lock(KEY)
    assert lock.owner.job_start == 1
    store.unlock(KEY, lock)
    claimed_by(store.lock_path(KEY), **elsewhere, job="4712")
    assert store.lock(KEY) is None


def test_a_machine_that_was_started_again_has_lost_its_claims(store):
    claimed_by(store.lock_path(KEY), boot="before")
    if not Owner.here().machine:
        pytest.skip("this machine has no /etc/machine-id, so that it cannot be told from another of its name")
    assert not store.is_locked(KEY)
    assert store.lock(KEY) is not None


def test_pids_of_another_container_are_not_judged(store):
    claimed_by(store.lock_path(KEY), space="1", pid=2**30)
    assert store.lock(KEY) is None


def test_a_pid_that_another_process_has_by_now_is_no_holder(store):
    claimed_by(store.lock_path(KEY), start=1)
    assert not store.is_locked(KEY)
    assert store.lock(KEY) is not None


def test_a_step_is_claimed_while_a_rank_lives(store):
    lock = store.lock(KEY)
    one, other = (locks.acquire(store.alive_path(KEY), shared=True, wait=True) for _ in "ab")
    lock.release()
    for rank in (one, other):
        assert store.is_locked(KEY)
        assert store.lock(KEY) is None
        rank.release()
    lock = store.lock(KEY)
    assert lock is not None
    claimed_by(store.alive_path(KEY), pid=2**22 - 1, start=1)
    store.unlock(KEY, lock)
    assert list(store.locks.iterdir()) == []


def test_a_claim_that_is_waited_for_in_vain_is_told(store, monkeypatch):
    monkeypatch.setattr(claims, "PATIENCE", 0.1)
    claimed_by(store.lock_path("publish"), host="node7", boot="b", machine="m")
    with pytest.raises(CdpoError, match=r"waited 0 s for it; held by process \d+ on node7; if that has ended, remove"):
        locks.acquire(store.lock_path("publish"), wait=True)


def test_flock_and_claims_are_never_held_at_once(tmp_path, monkeypatch):
    """A disk that one machine has as its own, and another over the network."""
    store = Store(tmp_path)
    lock = store.lock(KEY)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(locks, "has_flock", lambda folder: False)
        assert store.is_locked(KEY)
        with pytest.raises(CdpoError, match="locked by flock, from a machine where this file system is a local disk"):
            store.lock(KEY)
        assert claims.acquire(store.lock_path(KEY)) is None
        assert store.claiming_jobs(KEY) == set()
        assert not store.release_claim(KEY, "4711", "it ended")
        lock.release()
        # whether it is, nobody can tell here
        assert store.is_locked(KEY)
    store.unlock(KEY, store.lock(KEY))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(locks, "has_flock", lambda folder: False)
        claim = store.lock(KEY)
    assert store.is_locked(KEY)
    assert store.lock(KEY) is None
    store.unlock(KEY, claim)
    assert isinstance(store.lock(KEY), locks.Flock)


def test_killed_at_any_operation_it_blocks_nobody(tmp_path, python):
    """A process that claims and gives up, killed before its n-th call on the file system."""
    code = """
import os, pathlib
count, path, last = 0, pathlib.Path(sys.argv[1]), int(sys.argv[2])
def hook(event, arguments):
    global count
    if event.startswith("os.") or event == "open":
        count += 1
        if count == last:
            os.kill(os.getpid(), 9)
sys.addaudithook(hook)
claims.acquire(path).release()
os._exit(0)
"""
    path = tmp_path / "room" / "x.lock"
    path.parent.mkdir()
    for operation in range(1, 100):
        ended = python(code, path, operation).wait()
        claim = claims.acquire(path)
        assert claim is not None
        claim.release()
        assert list(path.parent.iterdir()) == []
        if ended == 0:
            break
    assert ended == 0
    assert operation > 10


MOUNTS = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 22 0:41 / /home/my\040disk rw - fuse.sshfs me@there: rw
32 30 0:42 / /home/fast rw - lustre mds@tcp:/fast rw
33 22 0:43 / /home/fast rw - xfs /dev/sdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/x/y", "ext4"),
        ("/homework", "ext4"),
        ("/home/anna/store", "nfs4"),
        ("/home/my disk/store", "fuse.sshfs"),
        ("/home/fast/store", "xfs"),
    ],
)
def test_the_kind_of_a_file_system_is_read_from_the_mounts(tmp_path, path, kind):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert filesystem.kind(path, str(tmp_path / "mounts")) == kind


@pytest.mark.parametrize(
    ("kind", "trusted"),
    [("ext4", True), ("overlay", True), ("tmpfs", True), ("nfs4", False), ("fuse.sshfs", False), ("fuseblk", True)],
)
def test_which_file_systems_are_trusted(tmp_path, monkeypatch, kind, trusted):
    monkeypatch.setattr(filesystem, "kind", lambda path: kind)
    assert filesystem.has_flock.__wrapped__(tmp_path) is trusted
