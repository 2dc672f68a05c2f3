"""A step of several processes, from its worker's side: starts the launcher, waits, and reads what rank 0 left.

A worker that is told to stop tells the ranks, which may then write a checkpoint. The launcher hears nothing of it: it
would give them half a minute, and give up on a second signal.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cdpo.engine.process import die_with_parent
from cdpo.errors import OutOfMemory, StepError
from cdpo.files import read_json
from cdpo.step import Device
from cdpo.stopping import Stopped

#: the launcher's pid: a rank whose parent is another has lost it
LAUNCHER = "CDPO_LAUNCHER"
RESULT = "result.json"
RANK_FAILURE = "rank-failure.json"
#: made by the rank that fails first, which alone reports
FIRST = "rank-failure.first"
#: seconds that ranks have to end after SIGTERM before they are killed: to finish a step and write a checkpoint
GRACE = 600.0


def run(work: Path, device: Device) -> dict[str, Any]:
    """Run the step of `work` on `device.processes` ranks; returns rank 0's summary.

    Raises StepError (OutOfMemory too) where any rank failed, Stopped where they were told to stop. The launcher dies
    with this process, and each rank with the launcher.
    """
    for name in (RESULT, RANK_FAILURE, FIRST):
        (work / name).unlink(missing_ok=True)
    # env is not passed: the child's own environment, with what `_child` adds to it, goes on to the ranks
    launcher = subprocess.Popen(_command(work, device), stdin=subprocess.DEVNULL, preexec_fn=_child)
    try:
        code = launcher.wait()
    except Stopped:
        _stop_ranks(launcher)
        # unless they were done with it
        if not (work / RESULT).exists():
            raise
        code = 0
    failure = work / RANK_FAILURE
    if failure.exists():
        found = read_json(failure)
        if found["memory"] is not None:
            raise OutOfMemory(**found["memory"])
        if found["mendable"]:
            raise StepError(found["reason"])
        raise RuntimeError(f"rank {found['rank']}: {found['reason']}")
    if code != 0:
        raise RuntimeError(
            f"a rank was killed: the launcher of {device.processes} processes ended with exit code {code}"
        )
    if not (work / RESULT).exists():
        raise Stopped  # ranks that somebody else told to stop
    summary: dict[str, Any] = read_json(work / RESULT)
    return summary


def _stop_ranks(launcher: subprocess.Popen[bytes]) -> None:
    """Have the ranks stop, and wait for them; those that do not are killed with the launcher."""
    for rank in _children(launcher.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, signal.SIGTERM)
    try:
        launcher.wait(GRACE)
    except subprocess.TimeoutExpired:
        launcher.kill()


def _children(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit():
                text = Path(f"/proc/{entry}/stat").read_bytes()
                # the name in brackets may hold anything, brackets too
                if int(text.rpartition(b")")[2].split()[1]) == pid:
                    found.append(int(entry))
    return found


def _command(work: Path, device: Device) -> list[str]:
    count = str(device.processes)
    if device.accelerate_config is not None:
        launch = ["accelerate.commands.launch", "--config_file", device.accelerate_config, "--num_processes", count]
        launch += ["--num_machines", "1", "--main_process_port", "0"]
        rank = ["-m", "cdpo.engine.rank", str(work)]
    else:
        launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", count]
        rank = ["-m", "cdpo.engine.rank", str(work)]
    return [sys.executable, "-m", *launch, *rank]


def _child() -> None:
    """Between fork and exec of the launcher."""
    die_with_parent()
    os.environ[LAUNCHER] = str(os.getpid())
    # torchrun and accelerate leave SIGTERM, which they would handle, as it is: ignored
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
