"""Locks where `flock` is not to be trusted: a claim is a folder, and the name of its one entry says whose it is.

Everything here rests on `rename`, which every network file system does at once or not at all:

- a claim is taken by renaming a prepared folder, with one's own entry in it, to the claim's path; that succeeds only
  where there is no claim, or an empty one;
- it passes to another by renaming the entry: whoever finds it gone came too late. So a claim of a process that died
  is taken over by exactly one, and the engine hands its claim to the worker that it starts;
- it is given up by removing the entry.

Nothing ends a claim by itself. On the machine of its owner it is seen to be stale once that process, and all of its
session, are gone. From another machine nobody can see that: there a claim is held until its owner gives it up, until
the batch system says that the owner's job is over (`release`), or until the user removes the folder.
"""

import contextlib
import errno
import itertools
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, Self

from cdpo.errors import CdpoError

#: how long a claim that others hold for a moment is waited for, and how often it is looked at
PATIENCE = 60.0
PAUSE = 0.02
#: what a prepared folder is called before it is renamed to its place
PREPARED = ".claim-"
#: names of a batch system's job, by where it is told: the system's own variable, or ours where it has none
JOB_VARIABLES = ("CDPO_JOB_ID", "SLURM_JOB_ID")
#: which start of the job this is: a number that grows
START_VARIABLES = ("CDPO_JOB_START", "SLURM_RESTART_COUNT")

#: answers to a rename whose place is taken: a folder with an entry, a file, or (on SMB) any folder
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)
#: answers of a file system on which another machine has just removed what was asked for
GONE = (errno.ENOENT, errno.ESTALE)

_count = itertools.count()


@dataclass(frozen=True)
class Owner:
    """Who holds a claim; as a file's name, its fields in this order, set off by `~`."""

    host: str
    #: of the running kernel: no two machines, and no two starts of one, have the same
    boot: str
    #: the machine whatever is started on it
    machine: str
    #: pids count within it (containers have their own)
    space: str
    pid: int
    start: int
    #: of a batch system; "" outside of one
    job: str
    #: which start of that job
    job_start: int
    #: tells the claims of one process apart
    count: int

    @classmethod
    def here(cls, pid: int | None = None) -> Self:
        """This process, or a child of it. Raises ProcessLookupError where that has ended."""
        pid = os.getpid() if pid is None else pid
        stat = _stat(pid)
        if stat is None:
            raise ProcessLookupError(f"process {pid} has ended")
        job = next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), "")
        return cls(
            host=_plain(socket.gethostname()),
            boot=_read("/proc/sys/kernel/random/boot_id").replace("-", "")[:12],
            machine=_read("/etc/machine-id")[:12],
            space=re.sub(r"\D", "", os.readlink("/proc/self/ns/pid")),
            pid=pid,
            start=stat[1],
            job=_plain(job),
            job_start=int(next((os.environ[name] for name in START_VARIABLES if os.environ.get(name)), "0")),
            count=next(_count),
        )

    @classmethod
    def of(cls, name: str) -> Self | None:
        """The owner that an entry names; None where it is no owner's."""
        fields = name.split("~")
        try:
            host, boot, machine, space, pid, start, job, job_start, count = fields
            return cls(host, boot, machine, space, int(pid), int(start), job, int(job_start), int(count))
        except ValueError:
            return None

    @property
    def name(self) -> str:
        return "~".join(map(str, astuple(self)))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" + (f" (job {self.job})" if self.job else "")

    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        me = Owner.here()
        if self.boot == me.boot:
            return self.space == me.space and not _lives(self)
        if (self.host, self.machine) == (me.host, me.machine) and self.machine:
            # the machine was started again since
            return True
        # a batch system starts a job again only when it has ended
        return bool(self.job) and self.job == me.job and self.job_start < me.job_start


@dataclass(frozen=True)
class Claim:
    """A claim that this process holds, or one of several shares in it."""

    path: Path
    owner: Owner
    #: what a child must inherit to hold it too: nothing is inherited, it is handed over
    descriptors: tuple[int, ...] = ()

    def described(self) -> dict[str, Any]:
        """What a process that this one starts, or becomes, must be told to take it over."""
        return {"claim": str(self.path), "owner": asdict(self.owner)}

    def hand_over(self, pid: int) -> None:
        """Give it to the child `pid`, which may have taken it already; one that has ended needs none."""
        try:
            heir = replace(Owner.here(pid), count=self.owner.count)
        except ProcessLookupError:
            self.release()
            return
        _rename(self.path / self.owner.name, self.path / heir.name)

    def release(self, remove: bool = False) -> None:
        """Give it up; its folder goes in any case, since an empty claim is none."""
        (self.path / self.owner.name).unlink(missing_ok=True)
        _remove_empty(self.path)


def inherited(described: Mapping[str, Any]) -> Claim | None:
    """The claim that another process of this machine gave to this one; None where a third took it over meanwhile."""
    path, giver = Path(described["claim"]), Owner(**described["owner"])
    mine = replace(Owner.here(), count=giver.count)
    _rename(path / giver.name, path / mine.name)
    return Claim(path, mine) if (path / mine.name).exists() else None


def acquire(path: Path, wait: bool = False) -> Claim | None:
    """Claim `path` for this process alone; None where another has it and `wait` is False.

    Raises CdpoError, naming the holder, where it was waited for in vain.
    """
    me, limit = Owner.here(), time.monotonic() + PATIENCE
    prepared = path.with_name(PREPARED + me.name)
    _sweep(path.parent)
    prepared.mkdir()
    try:
        (prepared / me.name).touch()
        while True:
            try:
                os.rename(prepared, path)
            except OSError as error:
                if error.errno not in (*TAKEN, *GONE):
                    raise
            if (path / me.name).exists() or _take_over(path, me):
                return Claim(path, me)
            if path.is_dir() and _entries(path) == []:
                _remove_empty(path)
                continue
            if not wait:
                return None
            if time.monotonic() > limit:
                raise CdpoError(f"{path}: waited {PATIENCE:.0f} s for it; {told(path)}")
            time.sleep(PAUSE)
    finally:
        _discard(prepared)


def join(path: Path) -> Claim:
    """A share in `path`, which others may have too."""
    me = Owner.here()
    while True:
        path.mkdir(exist_ok=True)
        try:
            (path / me.name).touch()
        except OSError as error:
            # whoever saw it empty removed it
            if error.errno not in GONE:
                raise
            continue
        return Claim(path, me)


def holders(path: Path) -> list[str]:
    """Entries of a claim whose owners are not known to have ended."""
    return [name for name in _entries(path) if not _is_gone(name)]


def forget(path: Path) -> None:
    """Remove what processes that have ended left of a claim."""
    for name in _entries(path):
        if _is_gone(name):
            (path / name).unlink(missing_ok=True)
    _remove_empty(path)


def release(path: Path, job: str) -> bool:
    """Take the claim of a batch system's `job` from it, which is over; False where it has none."""
    mine = [name for name in _entries(path) if (owner := Owner.of(name)) is not None and owner.job == _plain(job)]
    for name in mine:
        (path / name).unlink(missing_ok=True)
    _remove_empty(path)
    return bool(mine)


def jobs(path: Path) -> set[str]:
    """The batch jobs that have a claim, or a share in it."""
    found = (Owner.of(name) for name in _entries(path))
    return {owner.job for owner in found if owner is not None and owner.job}


def told(path: Path) -> str:
    """Who holds a claim, and how it is ended, in words."""
    names = holders(path)
    owners = ", ".join(str(Owner.of(name) or f"an unknown process ({name})") for name in names) or "nobody"
    return f"held by {owners}; if that has ended, remove the folder {path}"


def _is_gone(name: str) -> bool:
    owner = Owner.of(name)
    return owner is not None and owner.is_gone()


def _take_over(path: Path, me: Owner) -> bool:
    names = _entries(path)
    if len(names) != 1 or not _is_gone(names[0]):
        return False
    _rename(path / names[0], path / me.name)
    return (path / me.name).exists()


def _rename(old: Path, new: Path) -> None:
    """Rename an entry if it is still there; who comes first gets it.

    Whether that was this process is asked of the folder afterwards: where an answer is lost on the network, a rename
    that was done is asked for again, and fails.
    """
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno not in GONE:
            raise


def _entries(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except NotADirectoryError:
        # locked by flock
        return []
    except OSError as error:
        if error.errno in GONE:
            return []
        raise


def _remove_empty(path: Path) -> None:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (*TAKEN, *GONE):
            raise


def _sweep(room: Path) -> None:
    """Remove what killed processes had prepared and not yet renamed."""
    for name in _entries(room):
        if name.startswith(PREPARED) and _is_gone(name.removeprefix(PREPARED)):
            _discard(room / name)


def _discard(prepared: Path) -> None:
    for name in _entries(prepared):
        (prepared / name).unlink(missing_ok=True)
    _remove_empty(prepared)


def _lives(owner: Owner) -> bool:
    """Whether the process, or another of the session that it leads, runs on this machine."""
    stat = _stat(owner.pid)
    if stat is not None:
        # a pid is given to another process only once its session is empty
        return stat[1] == owner.start
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return any(found is not None and found[0] == owner.pid for found in map(_stat, pids))


def _stat(pid: int) -> tuple[int, int] | None:
    """(session, start) of a living process: `start` counts clock ticks since the machine started."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else (int(fields[3]), int(fields[19]))


def _read(path: str) -> str:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as stream:
        return stream.read().strip()
    return ""


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)[:60]
