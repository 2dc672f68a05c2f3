"""A step of several processes, from its worker's side: starts the launcher, waits, and reads what rank 0 left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cdpo.engine.process import Stopped, die_with_parent
from cdpo.errors import StepError
from cdpo.files import read_json
from cdpo.step import Device

#: the launcher's pid: a rank whose parent is another has lost it
LAUNCHER = "CDPO_LAUNCHER"
RESULT = "result.json"
RANK_FAILURE = "rank-failure.json"
#: made by the rank that fails first, which alone reports
FIRST = "rank-failure.first"
#: seconds that ranks have to end after SIGTERM before they are killed
GRACE = 10.0


def run(work: Path, device: Device) -> dict[str, Any]:
    """Run the step of `work` on `device.processes` ranks; returns rank 0's summary.

    Raises StepError where any rank failed. The launcher dies with this process, and each rank with the launcher.
    """
    for name in (RESULT, RANK_FAILURE, FIRST):
        (work / name).unlink(missing_ok=True)
    # env is not passed: the child's own environment, with what `_child` adds to it, goes on to the ranks
    launcher = subprocess.Popen(_command(work, device), stdin=subprocess.DEVNULL, preexec_fn=_child)
    try:
        code = launcher.wait()
    except Stopped:
        launcher.terminate()
        try:
            launcher.wait(GRACE)
        except subprocess.TimeoutExpired:
            launcher.kill()
        raise
    failure = work / RANK_FAILURE
    if failure.exists():
        found = read_json(failure)
        if found["mendable"]:
            raise StepError(found["reason"])
        raise RuntimeError(f"rank {found['rank']}: {found['reason']}")
    if code != 0:
        raise RuntimeError(
            f"a rank was killed: the launcher of {device.processes} processes ended with exit code {code}"
        )
    summary: dict[str, Any] = read_json(work / RESULT)
    return summary


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
