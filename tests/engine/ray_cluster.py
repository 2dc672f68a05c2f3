"""A real Ray on this machine, in a folder: `ray start --head --block`, with ports and a token of its own.

`ray stop` ends every Ray of a machine. This one is ended by its process group: with --block the daemons of a node stay
in the group of their `ray start`.
"""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RAY = Path(sys.executable).with_name("ray")


def missing():
    """Why no Ray can be started here, or None."""
    return None if RAY.exists() else "Ray is not installed: pip install 'cdpo[ray]'"


class Cluster:
    def __init__(self, folder, cpus=2, gpus=0):
        """`folder` must have a short path, because Ray puts sockets into it. The GPUs are made up (fakes/pynvml.py)."""
        self.folder, self.cpus, self.gpus = folder, cpus, gpus
        self.port = free_port()
        cards = [{"uuid": f"GPU-{number}", "name": "made up"} for number in range(gpus)]
        (folder / "nvml.json").write_text(json.dumps({"gpus": cards}))
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        #: for whoever speaks to it
        self.environment = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
        self.nodes = []
        self.head = None

    @property
    def address(self):
        return f"{address_of_this_machine()}:{self.port}"

    def start(self, seconds=60):
        self.head = self._node("--head", f"--port={self.port}", "--include-dashboard=false", seconds=seconds)

    def add_node(self, *options):
        return self._node(f"--address={self.address}", *options)

    def _node(self, *options, seconds=60):
        log = self.folder / f"node-{len(self.nodes)}.log"
        command = [RAY, "start", "--block", "--disable-usage-stats", f"--num-cpus={self.cpus}", *options]
        command += [f"--temp-dir={self.folder}/r", "--object-store-memory=80000000", f"--num-gpus={self.gpus}"]
        environment = {
            **os.environ,
            **self.environment,
            "RAY_AUTH_MODE": "token",
            "PYTHONPATH": os.pathsep.join([str(HERE / "fakes"), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "FAKE_NVML": str(self.folder / "nvml.json"),
        }
        with open(log, "wb") as stream:
            node = subprocess.Popen(
                command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        self.nodes.append(node)
        limit = time.monotonic() + seconds
        while "Ray runtime started" not in log.read_text():
            if node.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"Ray did not start:\n{log.read_text()}")
            time.sleep(0.1)
        return node

    def pids(self, title=""):
        """Processes of this cluster; `title` is a part of the command line, such as `ray::make`."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
                    environment = (entry / "environ").read_bytes()
                    ours = str(self.folder).encode() in (entry / "cmdline").read_bytes() + environment
                    if ours and state != b"Z" and title in (entry / "cmdline").read_bytes().decode():
                        found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def stop(self):
        for node in reversed(self.nodes):
            self.kill(node)

    def kill(self, node):
        """What loses a machine. (On SIGTERM a node drains for 30 seconds first.) Its Ray workers see it, and end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def address_of_this_machine():
    """The address by which Ray calls this machine, also where it is told 127.0.0.1."""
    import ray

    return ray.util.get_node_ip_address()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
