"""What the engine asks of a batch system (SLURM, Ray): the jobs of one store, and what became of them."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from cdpo.errors import CdpoError
from cdpo.store import Store

if TYPE_CHECKING:
    from cdpo.plan.graph import PlannedStep


class Unreachable(CdpoError):
    """The batch system does not answer; it may later, and its jobs run meanwhile."""


@dataclass(frozen=True)
class JobState:
    """What the batch system says of a job.

    `waiting` (for its parents, for a place, to be started again), `running`, `ended` (well or not), or `unknown`: it
    was forgotten, as systems without accounting do soon after the end.
    """

    kind: Literal["waiting", "running", "ended", "unknown"]
    #: why it waits, or how it ended
    reason: str = ""
    #: what the batch system wrote of the job
    log: Path | None = None
    #: it will not go on, for no fault of its step: a parent's job ended badly, or it was preempted for good
    orphaned: bool = False


class Backend(Protocol):
    """A batch system, for the steps of one store."""

    #: seconds between two questions
    poll_seconds: float

    def living(self) -> dict[str, str]:
        """Step key -> id of the job that waits or runs for it. Raises Unreachable."""

    def submit(self, step: "PlannedStep", command: Sequence[str], after: Sequence[str]) -> str:
        """Queue `command`, to be started once the jobs `after` have ended well; the job's id.

        Raises Unreachable, or UsageError where the batch system refuses the job for good.
        """

    def look(self, ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each job. Raises Unreachable."""

    def cancel(self, ids: Sequence[str]) -> None:
        """End these jobs, wherever they are. Raises Unreachable."""


def mark(store: Store) -> str:
    """What tells the jobs of one store from those of another."""
    return hashlib.sha256(os.path.realpath(store.root).encode()).hexdigest()[:12]
