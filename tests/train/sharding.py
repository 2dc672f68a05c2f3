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
import pytest

from cdpo.config.devices import Devices, read_devices
from cdpo.store import Store

COMPARED = {"loss", "eval_loss", "rewards/margins", "grad_norm", "num_tokens", "learning_rate", "sail/preference"}


def devices_of(folder: Path, pipelines: dict[str, Any], card: str | None = None) -> Devices:
    """What devices.yaml with these `pipelines` says, on a CPU or on GPUs called `card`."""
    file = folder / "configs" / "devices.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"gpus": "auto" if card else [], "threads": 1, "pipelines": pipelines}))
    return read_devices(file)


def describe(
    world: Any,
    folder: Path,
    pipeline: str,
    params: dict[str, Any],
    wanted: dict[str, Any],
    card: str | None = None,
    **inputs: Any,
) -> Path:
    """The work folder of a step on the devices `wanted` (an entry of devices.yaml's `pipelines`)."""
    step = world.step(pipeline, params, **inputs)
    step.device = devices_of(folder, {pipeline: wanted}, card).device(pipeline, card)
    key = hashlib.sha256(str(step.work).encode()).hexdigest()  # of a folder that is this step's alone
    work = folder / "store" / "work" / key
    work.mkdir(parents=True)
    described = {name: getattr(step, name) for name in ("pipeline", "name", "params", "inputs", "seed")}
    planned = {role: {"folder": str(path)} for role, path in step.inputs.items()}
    described |= {"key": key, "version": 1, "planned": planned, "device": asdict(step.device)}
    (work / "step.json").write_text(json.dumps(described))
    return work


def environment(work: Path) -> dict[str, str]:
    """What an engine gives the worker of a step."""
    found = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    on_cpu = json.loads((work / "step.json").read_text())["device"]["kind"] == "cpu"
    return found | ({"CUDA_VISIBLE_DEVICES": ""} if on_cpu else {})


def make(work: Path) -> subprocess.CompletedProcess[str]:
    """Run the worker of a step to its end."""
    command = [sys.executable, "-m", "cdpo.engine.worker", str(work)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment(work))


class Made:
    """A finished step: what its worker published."""

    def __init__(self, work: Path, ended: subprocess.CompletedProcess[str]) -> None:
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
        self.log = ended.stdout + ended.stderr
        folder = Store(work.parent.parent).find(work.name)
        assert folder is not None
        self.summary = json.loads((folder / "manifest.json").read_text())["summary"]
        self._read(folder)

    @classmethod
    def by_ranks(cls, work: Path) -> "Made":
        """What ranks left that no worker waited for."""
        made = cls.__new__(cls)
        made.summary = json.loads((work / "result.json").read_text())
        made._read(work)
        return made

    def _read(self, folder: Path) -> None:
        self.out = folder / "out"
        self.curve = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self.scores = pq.read_table(self.out / "scores.parquet")


def same(one: Made, other: Made, tolerance: float) -> None:
    """The same losses and norms of gradients at each step, and the same scores of each row afterwards."""
    assert [each["step"] for each in one.curve] == [each["step"] for each in other.curve]
    for mine, theirs in zip(one.curve, other.curve, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() & COMPARED:
            assert theirs[name] == pytest.approx(mine[name], rel=tolerance, abs=tolerance), (mine["step"], name)
    assert one.scores["prompt_id"].equals(other.scores["prompt_id"])
    for name in {"loss", "rewards/margins", "rm/margin"} & set(one.scores.column_names):
        assert abs(one.scores[name].to_numpy() - other.scores[name].to_numpy()).max() < 10 * tolerance, name
