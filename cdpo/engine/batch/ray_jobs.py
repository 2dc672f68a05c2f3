"""What runs inside a Ray cluster: `Jobs`, a detached actor that owns the jobs of one store, and `make`, one job's task.

Ray ends the tasks of a driver that leaves; those of a detached actor stay. The actor hands Ray each job as a task that
takes its parents' results, so Ray orders them, and notes in the store what it was given and what is over: where it is
killed Ray starts it again, the tasks have gone down with it, and it submits what the file says is not over.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from cdpo.engine.process import die_with_parent
from cdpo.files import append_json, read_json_lines
from cdpo.stopping import STOPPED

#: times that Ray starts a job again whose Ray worker or node died, or that was stopped by somebody else
RETRIES = 3
#: seconds that a job has to write its checkpoint after SIGTERM
GRACE = 120.0
#: seconds between two looks at the job's process
PAUSE = 0.05
#: seconds without a job or a question after which the actor leaves
IDLE = 600.0
ORPHANED = "a parent's job ended badly"


class Stopped(Exception):
    """The job ended by a SIGTERM that cdpo did not send; it is to go on from its checkpoint."""


class Failed(Exception):
    """The job ended badly; the message says how and where."""


class Refused(Exception):
    """The job cannot be taken; the message says why."""


@dataclass
class Job:
    id: str
    key: str
    #: the step's label, as Ray's own tools show it
    label: str
    command: list[str]
    #: ids of the jobs that must end well before it
    after: list[str]
    cpus: int
    gpus: int


@dataclass
class State:
    kind: Literal["waiting", "running", "ended"] = "waiting"
    reason: str = ""
    well: bool = False
    orphaned: bool = False


class Jobs:
    """The jobs of one store. Methods are called through Ray, one at a time."""

    def __init__(self, store: str, idle: float = IDLE) -> None:
        self._store, self._idle = Path(store), idle
        self._me = ray.get_runtime_context().current_actor
        # an actor keeps its id when it is started again, and a later actor of this store has another
        self._journal = self._store / "jobs" / f"ray-{ray.get_runtime_context().get_actor_id()}.jsonl"
        self._jobs: dict[str, Job] = {}
        self._states: dict[str, State] = {}
        #: results of the jobs that are not over
        self._results: dict[str, Any] = {}
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._asked = time.monotonic()
        self._remember()
        self._watch = asyncio.get_running_loop().create_task(self._leave_when_idle())

    # asked by drivers

    async def submit(self, job: Job) -> None:
        """Take a job, once: a driver that got no answer may ask again. Raises Refused."""
        self._asked = time.monotonic()
        if job.id in self._jobs:
            return
        described = self._store / "jobs" / f"{job.key}.json"
        if not described.is_file():
            raise Refused(
                f"{described} is not there on {socket.gethostname()}: every node of a Ray cluster must see the store "
                "under this path (a shared file system)"
            )
        if any(parent not in self._jobs for parent in job.after):
            raise Refused("its parents' jobs were lost meanwhile; repeat `cdpo execute`")
        append_json(self._journal, {"submitted": asdict(job)})
        self._jobs[job.id], self._states[job.id] = job, State()
        self._start(job)

    async def living(self) -> dict[str, str]:
        """Step key -> id of the job that waits or runs."""
        self._asked = time.monotonic()
        return {job.key: job.id for job in self._jobs.values() if self._states[job.id].kind != "ended"}

    async def look(self) -> dict[str, dict[str, Any]]:
        """The state of every job, by id."""
        self._asked = time.monotonic()
        return {id: asdict(state) for id, state in self._states.items()}

    async def cancel(self, ids: Sequence[str]) -> None:
        """End these jobs; those that run get SIGTERM, and SIGKILL after a grace."""
        self._asked = time.monotonic()
        for id in ids:
            if id in self._results:
                ray.cancel(self._results[id])
                self._end(id, reason="cancelled")

    # told by tasks

    async def began(self, id: str, place: str) -> None:
        if id in self._results:
            self._states[id] = State("running", f"on {place}")

    async def stopped(self, id: str, place: str) -> None:
        if id in self._results:
            self._states[id] = State("waiting", f"stopped on {place}, and started again")

    def _remember(self) -> None:
        """Where this actor was killed: what it knew, from the store. What is not over is submitted again."""
        for line in read_json_lines(self._journal):
            if "submitted" in line:
                job = Job(**line["submitted"])
                self._jobs[job.id], self._states[job.id] = job, State()
            else:
                self._states[line["ended"]] = State(**line["state"])
        for job in self._jobs.values():
            if self._states[job.id].kind != "ended":
                self._start(job)

    def _start(self, job: Job) -> None:
        """Hand the job to Ray, to be started once its parents have ended well."""
        if self._bad(job):
            self._end(job.id, reason=ORPHANED, orphaned=True)
            return
        task = ray.remote(make).options(
            name=job.label,
            num_cpus=job.cpus,
            num_gpus=job.gpus,
            max_retries=RETRIES,
            retry_exceptions=[Stopped],
        )
        # parents that are over have ended well
        parents = [self._results[parent] for parent in job.after if parent in self._results]
        self._results[job.id] = task.remote(self._me, job, *parents)
        self._followers[job.id] = asyncio.get_running_loop().create_task(self._follow(job))

    def _bad(self, job: Job) -> bool:
        parents = [self._states[parent] for parent in job.after]
        return any(parent.kind == "ended" and not parent.well for parent in parents)

    async def _follow(self, job: Job) -> None:
        error = None
        try:
            await self._results[job.id]
        except Exception as raised:
            error = raised
            # A failed task fails those that take its result, but only once all that they take is there or has failed.
            await asyncio.gather(*(self._followers[parent] for parent in job.after if parent in self._followers))
        del self._followers[job.id]
        if job.id not in self._results:
            # cancelled, and that was noted
            return
        if error is None:
            self._end(job.id, well=True)
        elif self._bad(job):
            self._end(job.id, reason=ORPHANED, orphaned=True)
        else:
            self._end(job.id, reason=why(error))

    def _end(self, id: str, reason: str = "", well: bool = False, orphaned: bool = False) -> None:
        self._results.pop(id, None)
        self._states[id] = State("ended", reason, well, orphaned)
        append_json(self._journal, {"ended": id, "state": asdict(self._states[id])})

    async def _leave_when_idle(self) -> None:
        """Leave once there was nothing to do for a while; the next submission starts another actor."""
        while self._results or time.monotonic() - self._asked < self._idle:
            await asyncio.sleep(min(1.0, self._idle))
        self._journal.unlink(missing_ok=True)
        ray.kill(self._me, no_restart=True)


def make(jobs: Any, job: Job, *parents: None) -> None:
    """Run the job's command here, where Ray has a place for it; `parents` are for Ray's order alone.

    The process dies with this one. Raises Stopped, Failed, and KeyboardInterrupt where the task was cancelled.
    """
    place = socket.gethostname()
    jobs.began.remote(job.id, place)
    cancelled: list[int] = []
    # Ray cancels by interrupting the main thread, which may stand anywhere, also halfway in the start of the process
    before = signal.signal(signal.SIGINT, lambda number, frame: cancelled.append(number))
    process = None
    # what is said before the step has a log of its own
    with tempfile.TemporaryFile() as words:
        try:
            process = subprocess.Popen(
                # the Python and the environment variables of this node, not of whoever submitted
                [sys.executable, *job.command[1:]],
                # for its claims, where locks are such: Ray tries a job again when its node is lost
                env={**os.environ, "CDPO_JOB_ID": job.id, "CDPO_JOB_START": str(time.time_ns())},
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
            # in small steps: an interrupt of Ray's is no signal, and ends no waiting
            while process.poll() is None and not cancelled:
                time.sleep(PAUSE)
        finally:
            if process is not None:
                _end(process)
            signal.signal(signal.SIGINT, before)
        words.seek(0)
        said = "; ".join(words.read().decode(errors="replace").split("\n")[-12:]).strip("; ")
    if cancelled:
        raise KeyboardInterrupt
    code = process.returncode
    if code in (STOPPED, -signal.SIGTERM):
        jobs.stopped.remote(job.id, place)
        raise Stopped
    if code != 0:
        raise Failed(f"{how_it_ended(code)} on {place}" + (f": {said}" if said else ""))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the job's process, if it has not, and whatever it left in its group."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    # no number of a process is given away again so soon
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def how_it_ended(code: int) -> str:
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{hint}"
    return f"ended with exit code {code}"


def why(error: Exception) -> str:
    """What an error of a task means, in a line."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, Failed):
        return str(cause)
    if isinstance(cause, Stopped):
        return f"stopped {RETRIES + 1} times by a SIGTERM that was not `cdpo stop`"
    if isinstance(cause, RayError):
        return f"Ray: {str(cause).strip().splitlines()[0]}"
    return f"{type(cause).__name__}: {cause}"
