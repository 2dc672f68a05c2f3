"""Who has which GPU: one lock file per GPU UUID, in one place for all users and all stores of this machine.

A step's worker inherits the descriptors of its leases, so a GPU is taken as long as a process of the step lives; two
`cdpo execute` share a machine without a daemon and without knowing of each other. The lock file says who has it.
"""

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdpo.engine.gpus.nvml import Gpu
from cdpo.engine.process import is_alive
from cdpo.errors import UsageError

#: not below $TMPDIR, which batch systems and users set each to their own
LEASES = Path("/tmp/cdpo-gpu-leases")
#: names another place for the leases
LEASES_VARIABLE = "CDPO_GPU_LEASES"


def lease(gpu: Gpu) -> int | None:
    """A descriptor that holds `gpu` as long as it is open anywhere, or None where another process has it."""
    descriptor = _open_shared(_lock_file(gpu))
    if not _lock(descriptor, fcntl.LOCK_EX):
        os.close(descriptor)
        return None
    # what the last holder wrote of itself is no longer true
    os.ftruncate(descriptor, 0)
    return descriptor


def sign(descriptor: int, who: Mapping[str, Any]) -> None:
    """Write in a lease who holds it: pid and start of the worker, user, step, store, since (seconds of the epoch).

    `does` says what the process does to the step, where it does not make it.
    """
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(who).encode(), 0)


def holder(gpu: Gpu) -> dict[str, Any] | None:
    """Who holds the lease of `gpu`, as `sign` wrote it; {} where that is not written yet, None where nobody does."""
    try:
        descriptor = os.open(_lock_file(gpu), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if _lock(descriptor, fcntl.LOCK_SH):
            return None
        found: dict[str, Any] = json.loads(os.pread(descriptor, 65536, 0) or b"{}")
        return found
    except ValueError:
        # caught while it was being written
        return {}
    finally:
        os.close(descriptor)


def describe(gpu: Gpu) -> str:
    """The lease of `gpu` in words."""
    who = holder(gpu)
    if who is None:
        return "not leased"
    if not who:
        return "leased a moment ago"
    since = time.strftime("%d %b %H:%M", time.localtime(who["since"]))
    doing = f"{who.get('does', 'makes')} {who['step']} in {who['store']}"
    text = f"leased since {since} by {who['user']}: process {who['pid']} {doing}"
    if is_alive(who):
        return text
    return f"{text}; it has ended, and something that it started still runs (`cdpo stop --store {who['store']}`)"


@contextmanager
def alone() -> Iterator[bool]:
    """Whether this process alone takes leases now. Two that want several GPUs each cannot take them crosswise."""
    descriptor = _open_shared(lease_folder() / "taking.lock")
    try:
        yield _lock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _lock_file(gpu: Gpu) -> Path:
    return lease_folder() / f"{gpu.uuid.replace('/', '_')}.lock"


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lease_folder() -> Path:
    """The place of the lock files, made writable for every user. Raises UsageError where there cannot be any."""
    folder = Path(os.environ.get(LEASES_VARIABLE, LEASES))
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            os.chmod(folder, 0o1777)
    except OSError as error:
        raise _unusable(folder, error) from None
    return folder


def _unusable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{folder}: no GPU can be leased there ({error}); every user must be able to write there (`chmod 1777`), or "
        f"name another folder, the same for everybody, in {LEASES_VARIABLE}"
    )


def _open_shared(path: Path) -> int:
    try:
        return _open_or_make(path)
    except OSError as error:
        raise _unusable(path.parent, error) from None


def _open_or_make(path: Path) -> int:
    # Opening another user's file with O_CREAT is refused in a sticky folder (fs.protected_regular), so: first without.
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        # for everybody from the moment that it is there under its name, whatever this process's umask
        descriptor, beside = tempfile.mkstemp(dir=path.parent)
        try:
            os.fchmod(descriptor, 0o666)
            os.link(beside, path)
        except FileExistsError:
            continue
        finally:
            os.close(descriptor)
            os.unlink(beside)
