"""What squeue, scontrol and sacct say of jobs, and what it means."""

import re
from dataclasses import dataclass
from pathlib import Path

from cdpo.engine.batch.backend import JobState

WAITING = frozenset(
    ["PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "SUSPENDED"]
)
#: a job that is COMPLETING may be over or be queued again; SLURM tells when it is neither any more
RUNNING = frozenset(["RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"])
#: no fault of the step, and SLURM did not queue the job again
LOST = frozenset(["PREEMPTED", "NODE_FAIL", "BOOT_FAIL"])
ORPHANED = "DependencyNeverSatisfied"
#: a job that neither SLURM nor its accounts know
FORGOTTEN = JobState("unknown", "SLURM knows it no more, and how it ended was not recorded")


@dataclass(frozen=True)
class Listed:
    """A line of squeue."""

    id: str
    #: SLURM's word: PENDING, RUNNING, ...
    state: str
    #: why it waits or ended, in SLURM's words
    reason: str
    #: of its step
    key: str


def read_squeue(text: str, mark: str) -> list[Listed]:
    """The jobs with `mark` in their names among the lines `ID|STATE|REASON|NAME`."""
    found = []
    for line in text.splitlines():
        id, state, reason, name = line.split("|", 3)
        named = re.search(rf"\.{mark}\.([0-9a-f]+)$", name)
        if named:
            found.append(Listed(id, state, reason, named[1]))
    return found


def read_sacct(text: str) -> dict[str, JobState]:
    """Job -> state, from the lines `JOB|STATE|EXIT` of sacct."""
    found = {}
    for line in text.splitlines():
        id, state, code = line.split("|", 2)
        # CANCELLED by 1000
        word = state.split()[0]
        # SLURM itself has forgotten the job: where its accounts lag behind, it is over all the same
        found[id] = state_of(word, "", code) if word not in WAITING | RUNNING else FORGOTTEN
    return found


def read_exit_code(text: str) -> str | None:
    """`ExitCode=137:0` of `scontrol show job`: exit code and signal."""
    found = re.search(r"\bExitCode=(\d+:\d+)", text)
    return found[1] if found else None


def state_of(word: str, reason: str, code: str | None = None, log: Path | None = None) -> JobState:
    """What a state of SLURM, with its reason and perhaps an exit code ("137:0"), means for whoever watches."""
    said = "" if reason in ("", "None", ORPHANED) else f" ({reason})"
    if word == "FAILED" and code is not None:
        exited, _, signal = code.partition(":")
        said = f" (exit code {exited}{f', signal {signal}' if signal not in ('', '0') else ''})"
    if reason == ORPHANED:
        return JobState("waiting", "the job of an input ended badly", log, orphaned=True)
    if word in WAITING:
        return JobState("waiting", f"{word}{said}", log)
    if word in RUNNING:
        return JobState("running", f"{word}{said}", log)
    return JobState("ended", f"{word}{said}", log, orphaned=word in LOST)
