"""One small playground and one tiny model for all tests of the training room."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cdpo.data import playground
from cdpo.data.prepared import write_split
from cdpo.data.tiny import build_tiny
from cdpo.step import Device, Step

SPEC = {"kind": "tiny", "seed": 0, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


class World:
    """Folders `data` and `base`, and steps run on them in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.base = folder, folder / "data", folder / "base"
        for split, rows in playground.make(45, 12, 10, 0).items():
            write_split(self.data, split, rows)
        build_tiny(SPEC, self.base)
        self.count = 0

    def step(self, pipeline: str, params: Mapping[str, Any], seed: int = 0, **inputs_and_device: Any) -> Step:
        self.count += 1
        work = self.folder / f"work{self.count}"
        (work / "out").mkdir(parents=True)
        device = Device(**{"micro_batch": 8, **inputs_and_device.pop("device", {})})
        inputs = {"data": self.data, "model": self.base, **inputs_and_device}
        return Step(pipeline, "key", "name", dict(params), {k: str(v) for k, v in inputs.items()}, seed, device, work)

    def run(self, pipeline: str, params: Mapping[str, Any], **options: Any) -> tuple[Path, dict[str, Any]]:
        """Run a step; returns its work folder and its summary, which must be JSON."""
        step = self.step(pipeline, params, **options)
        summary = importlib.import_module(f"cdpo.pipelines.{pipeline.lower()}").run(step)
        return step.work, json.loads(json.dumps(summary))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return World(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="session")
def sft(world: World) -> Path:
    """A policy after a few steps of full SFT."""
    params = {"learning_rate": 5e-3, "max_steps": 4, "batch_size": 16}
    return world.run("SFT", params)[0] / "out"


@pytest.fixture(scope="session")
def sft_adapter(world: World) -> Path:
    """The adapter of a few steps of LoRA SFT on the base."""
    params = {"learning_rate": 2e-2, "max_steps": 4, "batch_size": 16, "lora": {"r": 4, "lora_alpha": 8.0}}
    return world.run("SFT", params)[0] / "out"
