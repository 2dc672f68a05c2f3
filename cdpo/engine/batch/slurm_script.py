"""What a job's script does before and after its worker (see cdpo/engine/batch/slurm.py).

SLURM warns the worker by SIGTERM before the time limit, and before a preemption where the cluster grants a time of
grace; the worker saves what it needs to go on and ends with STOPPED. The script then puts its job back into the queue,
if the job still counts as running: where SLURM has ended it already (scancel, requeue, preemption without grace), what
comes next is decided, and a cancelled job that is queued again would come back to life.
"""

import os
import shlex
from collections.abc import Sequence

from cdpo.stopping import STOPPED

#: seconds before the time limit at which a worker is told to stop; slurmctld looks every half minute
WARNING = 120
#: a job is queued again so often at most: one whose time limit is too short to get anywhere must end some day
MOST_RESTARTS = 500


def warning_seconds(minutes: int | None) -> int:
    """How long before a limit of `minutes` (None: the partition's) the worker is told to stop."""
    return WARNING if minutes is None else min(WARNING, 15 * minutes)


def setup(lines: Sequence[str]) -> list[str]:
    """The lines before the worker: the user's own, and where the submitter finds its modules."""
    path = os.environ.get("PYTHONPATH")
    exports = [] if path is None else [f"export PYTHONPATH={shlex.quote(path)}"]
    # where SLURM ends the job it signals the script too, which must stay as long as its worker does
    return [*lines, *exports, "trap : TERM"]


def teardown() -> list[str]:
    """The lines after the worker."""
    return [
        "code=$?",
        f'while [ $code -eq {STOPPED} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MOST_RESTARTS} ]; do',
        '    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) || { sleep 5; continue; }',
        '    [ "$state" = RUNNING ] || break',
        '    scontrol requeue "$SLURM_JOB_ID" && break',
        "    sleep 5",
        "done",
        "exit $code",
    ]
