"""Plans on a Ray cluster of the tests: the clusters, and what is asked of them and of their processes."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray_cluster
from engine_bench import of_kind, wait_for

from cdpo.config.devices import Devices
from cdpo.engine.batch.backend import mark
from cdpo.engine.batch.ray import Ray
from cdpo.engine.process import identity


def start_cluster(cpus, gpus=0):
    reason = ray_cluster.missing()
    if reason:
        pytest.skip(reason)
    # a short path, because Ray puts sockets below it
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = ray_cluster.Cluster(folder, cpus, gpus)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            gone = wait_for(lambda: not cluster.pids(), 20)
            shutil.rmtree(folder, ignore_errors=True)
    assert gone, "Ray left processes behind"


class Room:
    """A bench whose plans run on a cluster."""

    def __init__(self, bench, cluster):
        self.bench, self.cluster = bench, cluster
        self.devices = {"engine": "ray", "ray": {"address": cluster.address}}
        self.others = set(cluster.pids("ray::Jobs"))

    def execute(self, **options):
        return self.bench.execute(devices=self.devices, **options)

    def finish(self, process):
        return self.bench.finish(process, timeout=120)

    def run(self, **options):
        return self.finish(self.execute(**options))

    def backend(self, **devices):
        return Ray(self.bench.store, Devices.model_validate({"gpus": [], **self.devices, **devices}))

    def begun(self, name, times=1):
        return wait_for(lambda: self.bench.told()["begin", name] == times, 60)

    def worker(self, name):
        """Pid of the latest worker of a step."""
        lines = [line.split() for line in self.bench.diary.read_text().splitlines()]
        return [int(pid) for what, which, pid in lines if (what, which) == ("begin", name)][-1]

    def actor(self):
        """Pid of the actor of this store."""
        assert wait_for(lambda: set(self.cluster.pids("ray::Jobs")) - self.others, 20)
        (pid,) = set(self.cluster.pids("ray::Jobs")) - self.others
        return pid

    def kill_actor_for_good(self):
        name = f"cdpo-{mark(self.bench.store)}"
        code = f"import ray; ray.init({self.cluster.address!r}, namespace='cdpo', log_to_driver=False)\n"
        code += f"ray.kill(ray.get_actor({name!r}))"
        environment = {**os.environ, "RAY_AUTH_MODE": "token"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pid):
    try:
        identity(pid)
    except ProcessLookupError:
        return True
    return False


def notes(events, text):
    return [event for event in of_kind(events, "note") if text in event["text"]]


def heads():
    """How many Ray clusters have their head on this machine."""
    count = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            count += (entry / "cmdline").read_bytes().split(b"\0")[0].endswith(b"/gcs_server")
    return count
