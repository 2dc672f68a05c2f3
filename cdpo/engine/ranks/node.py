"""The launcher of one node, torchrun or accelerate, which starts the ranks of a step there.

A step of one node has its launcher below its worker. One of several nodes has this module on each, started by srun
(see launchers.py): `python -m cdpo.engine.ranks.node WORK` learns from SLURM which of the nodes it is, and ends as
its launcher does.

Launchers hear nothing of SIGTERM: they would give the ranks half a minute, and give up on a second signal. Whoever
started one tells its ranks itself.
"""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cdpo import stopping
from cdpo.engine.process import die_with_parent
from cdpo.errors import CdpoError, StepError
from cdpo.step import Device, Step

#: the launcher's pid: a rank whose parent is another has lost it
LAUNCHER = "CDPO_LAUNCHER"
#: where the first of several nodes waits for the others
PORT = "CDPO_PORT"
#: seconds that ranks have to end after SIGTERM before they are killed: to finish a step and write a checkpoint
GRACE = 600.0


@dataclass(frozen=True)
class Node:
    """Which of a step's nodes this is, and where the first one waits for the others."""

    number: int
    address: str
    port: int


def command(work: Path, device: Device, node: Node | None) -> list[str]:
    """The launcher and its ranks, on the only node or on `node`."""
    nodes, here = device.nodes, device.processes // device.nodes
    if device.accelerate_config is not None:
        launch = ["accelerate.commands.launch", "--config_file", device.accelerate_config]
        launch += ["--num_processes", str(device.processes), "--num_machines", str(nodes)]
        # at port 0 it looks for a free one
        port = 0 if node is None else node.port
        launch += ["--main_process_port", str(port)]
        if node is not None:
            launch += ["--machine_rank", str(node.number), "--main_process_ip", node.address]
    else:
        launch = ["torch.distributed.run", "--nproc_per_node", str(here)]
        if node is None:
            launch += ["--standalone"]
        else:
            launch += ["--nnodes", str(nodes), "--node_rank", str(node.number)]
            launch += ["--master_addr", node.address, "--master_port", str(node.port)]
    return [sys.executable, "-m", *launch, "-m", "cdpo.engine.ranks.rank", str(work)]


def start(work: Path, device: Device, node: Node | None = None) -> "subprocess.Popen[bytes]":
    """Start the launcher; it dies with this process, and each rank with it."""
    # env is not passed: the child's own environment, with what `_child` adds to it, goes on to the ranks
    return subprocess.Popen(command(work, device, node), stdin=subprocess.DEVNULL, preexec_fn=_child)


def _child() -> None:
    """Between fork and exec of the launcher."""
    die_with_parent()
    os.environ[LAUNCHER] = str(os.getpid())
    # torchrun and accelerate leave SIGTERM, which they would handle, as it is: ignored
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def stop(launcher: "subprocess.Popen[bytes]") -> None:
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


def this_node(device: Device) -> Node:
    """Which node of a step this is, by SLURM's variables. Raises StepError where they are not those of its srun."""
    environment = os.environ
    try:
        count, number = int(environment["SLURM_STEP_NUM_NODES"]), int(environment["SLURM_PROCID"])
        found = Node(number, environment["SLURM_LAUNCH_NODE_IPADDR"], int(environment[PORT]))
    except KeyError as error:
        raise StepError(
            f"{error.args[0]} is not set: the launchers of several nodes are started by srun, within a step's job"
        ) from None
    if count != device.nodes:
        raise StepError(f"devices.yaml asks for {device.nodes} nodes, and SLURM gave this step {count}")
    return found


def main(work: Path) -> int:
    stopping.obey(insistent=False)
    device = Step.read(work).device
    launcher = start(work, device, this_node(device))
    try:
        return launcher.wait()
    except stopping.Stopped:
        stop(launcher)
        return launcher.wait()


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except CdpoError as error:
        sys.exit(str(error))
