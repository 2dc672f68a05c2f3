"""A step of several processes, from its worker's side: has them started, waits, and reads what rank 0 left.

A worker that is told to stop tells the ranks, which may then write a checkpoint.
"""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from cdpo.engine.process import die_with_parent
from cdpo.engine.ranks import node
from cdpo.errors import OutOfMemory, StepError
from cdpo.files import read_json
from cdpo.step import Device
from cdpo.stopping import Stopped

RESULT = "result.json"
RANK_FAILURE = "rank-failure.json"
#: made by the rank that fails first, which alone reports
FIRST = "rank-failure.first"


def run(work: Path, device: Device) -> dict[str, Any]:
    """Run the step of `work` on `device.processes` ranks; returns rank 0's summary.

    Raises StepError (OutOfMemory too) where any rank failed, Stopped where they were told to stop. Launchers die with
    this process, and each rank with its launcher.
    """
    if device.distributed_type == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise StepError(
            f"{device.accelerate_config} asks for DeepSpeed, which is not installed: pip install 'cdpo[deepspeed]'"
        )
    for name in (RESULT, RANK_FAILURE, FIRST):
        (work / name).unlink(missing_ok=True)
    launcher = node.start(work, device) if device.nodes == 1 else _start_on_nodes(work, device)
    try:
        code = launcher.wait()
    except Stopped:
        node.stop(launcher) if device.nodes == 1 else _stop_on_nodes(launcher)
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


def srun(work: Path, device: Device) -> list[str]:
    """The command that starts one launcher on each node of this job, which knows the nodes and what each may use."""
    nodes = str(device.nodes)
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    # a launcher that dies takes the others with it
    words += ["--overlap", "--kill-on-bad-exit=1", "--cpu-bind=none", "--input=none"]
    if "SLURM_CPUS_PER_TASK" in os.environ:
        words.append(f"--cpus-per-task={os.environ['SLURM_CPUS_PER_TASK']}")
    return [*words, sys.executable, "-P", "-m", "cdpo.engine.ranks.node", str(work)]


def _start_on_nodes(work: Path, device: Device) -> "subprocess.Popen[bytes]":
    if "SLURM_JOB_ID" not in os.environ:
        raise StepError(f"a step of {device.nodes} nodes is started by SLURM only: `engine: slurm` in devices.yaml")
    environment = {**os.environ, node.PORT: str(_free_port())}
    if device.kind == "cuda":
        # these are the GPUs of this node; SLURM says on each which are its own
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    # if this process dies SLURM ends its job, and with that all nodes
    return subprocess.Popen(srun(work, device), stdin=subprocess.DEVNULL, env=environment, preexec_fn=die_with_parent)


def _stop_on_nodes(launchers: "subprocess.Popen[bytes]") -> None:
    """Have SLURM tell the launchers and ranks of all nodes; srun itself, if told to stop, has them killed."""
    subprocess.run(["scancel", "--signal=TERM", os.environ["SLURM_JOB_ID"]], check=False)
    try:
        launchers.wait(node.GRACE)
    except subprocess.TimeoutExpired:
        launchers.kill()


def _free_port() -> int:
    """A port that nobody on this machine, the first of the nodes, listens at."""
    with socket.socket() as listening:
        listening.bind(("", 0))
        port: int = listening.getsockname()[1]
        return port
