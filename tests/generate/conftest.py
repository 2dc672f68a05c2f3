"""A small playground and the untrained tiny model that answers it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdpo.step import Device, Step


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cdpo.data.tiny import build_tiny

    folder = tmp_path_factory.mktemp("gen") / "model"
    build_tiny({"kind": "tiny", "seed": 0, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}, folder)
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cdpo.data.playground import make
    from cdpo.data.prepared import write_split

    folder = tmp_path_factory.mktemp("gen") / "data"
    for split, rows in make(4, 6, 50, 0).items():
        write_split(folder, split, rows)
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Any:
    import torch

    from cdpo.models import load_policy

    torch.set_num_threads(1)
    return load_policy(model_folder, device=torch.device("cpu"))


@pytest.fixture
def gen_step(tmp_path: Path, data_folder: Path, model_folder: Path) -> Callable[..., Step]:
    """Makes a GEN step (and its step.json) in a folder of its own."""

    def make_step(name: str, micro_batch: int | None = None, processes: int = 1, seed: int = 0, **params: Any) -> Step:
        device = Device(micro_batch=micro_batch, processes=processes)
        inputs = {"data": str(data_folder), "model": str(model_folder)}
        step = Step("GEN", "0" * 64, name, {"max_new_tokens": 24, **params}, inputs, seed, device, tmp_path / name)
        step.out.mkdir(parents=True)
        described = {name: getattr(step, name) for name in ("pipeline", "key", "name", "params", "inputs", "seed")}
        (step.work / "step.json").write_text(json.dumps({**described, "device": dataclasses.asdict(device)}))
        return step

    return make_step
