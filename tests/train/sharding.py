"""Steps of `World` as a worker makes them, in a store of their own: launched, trained, published."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cdpo.config.devices import Devices, read_devices
from cdpo.store import Store

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def devices_of(folder: Path, pipelines: dict[str, Any]) -> Devices:
    """What devices.yaml with these `pipelines` says, on a CPU."""
    file = folder / "configs" / "devices.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"gpus": [], "threads": 1, "pipelines": pipelines}))
    return read_devices(file)


def describe(
    world: Any, folder: Path, pipeline: str, params: dict[str, Any], wanted: dict[str, Any], **inputs: Any
) -> Path:
    """The work folder of a step on the devices `wanted` (an entry of devices.yaml's `pipelines`)."""
    step = world.step(pipeline, params, **inputs)
    step.device = devices_of(folder, {pipeline: wanted}).device(pipeline, None)
    key = hashlib.sha256(str(step.work).encode()).hexdigest()  # of a folder that is this step's alone
    work = folder / "store" / "work" / key
    work.mkdir(parents=True)
    described = {name: getattr(step, name) for name in ("pipeline", "name", "params", "inputs", "seed")}
    planned = {role: {"folder": str(path)} for role, path in step.inputs.items()}
    described |= {"key": key, "version": 1, "planned": planned, "device": asdict(step.device)}
    (work / "step.json").write_text(json.dumps(described))
    return work


def make(work: Path) -> subprocess.CompletedProcess[str]:
    """Run the worker of a step to its end."""
    command = [sys.executable, "-m", "cdpo.engine.worker", str(work)]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)


class Made:
    """A finished step."""

    def __init__(self, work: Path, ended: subprocess.CompletedProcess[str]) -> None:
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
        self.log = ended.stdout + ended.stderr
        self.folder = Store(work.parent.parent).find(work.name)
        assert self.folder is not None
        self.out = self.folder / "out"
        self.summary = json.loads((self.folder / "manifest.json").read_text())["summary"]
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        self.curve = [json.loads(line) for line in lines]
        self.scores = pq.read_table(self.out / "scores.parquet")
