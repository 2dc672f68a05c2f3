"""Measured fit and running out of memory on a real GPU: `make gpu-check`. The same rules are tested on a CPU in
test_fit_probe.py and test_fit_memory.py.

Another process holds most of the card's memory, so that small models do not fit.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from resuming import Case

from cdpo.data import playground
from cdpo.data.prepared import write_split
from cdpo.data.tiny import build_tiny
from cdpo.engine.gpus import nvml
from cdpo.errors import CdpoError
from cdpo.files import read_json
from cdpo.train import micro_batch

pytestmark = pytest.mark.gpu

GB = 10**9
TOKENS = 900
PARAMS = {"batch_size": 256, "learning_rate": 1e-3, "attn_implementation": "eager", "max_steps": 2}
#: takes all but so many bytes of the card, says so, and waits
HOLD = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
kept = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def obstacle() -> str | None:
    """Why there is nothing to test here; None where there is."""
    try:
        if not nvml.list_gpus():
            return "no NVIDIA GPU here"
    except CdpoError as error:
        return str(error)
    code = "import torch; torch.zeros(1, device='cuda')"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode != 0:
        return "torch cannot compute on the GPU here: its CUDA build is needed"
    return None


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    why = obstacle()
    if why is not None:
        pytest.skip(why)


@pytest.fixture
def held() -> Iterator[None]:
    """Four gigabytes of the card are left."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(4 * GB)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield
    process.communicate("")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for split, rows in playground.make(256, 4, 4, 0).items():
        for row in rows:
            words = row["chosen"][0]["content"].split()
            row["chosen"] = [{"role": "assistant", "content": " ".join((words * TOKENS)[:TOKENS])}]
        write_split(folder / "data", split, rows)
    build_tiny({"kind": "tiny", "seed": 0, "max_position_embeddings": 1024}, folder / "base")
    return folder


def case(world: Any, long: Path, folder: Path, **device: Any) -> Case:
    whole = {"kind": "cuda", "card": nvml.list_gpus()[0].name, **device}
    return Case(world, folder, "SFT", PARAMS, data=long / "data", model=long / "base", device=whole)


def test_the_largest_micro_batch_that_fits_is_found_and_trains(world, long, held, tmp_path) -> None:
    def long_steps() -> None:
        micro_batch.LONG = 0.0

    step = case(world, long, tmp_path, micro_batch=None)
    assert step.attempt(prepare=long_steps) == 0, step.said()
    (found,) = (read_json(path) for path in (step.store.root / "measured").glob("*.json"))
    print(found)
    assert 1 < found["micro_batch"] < 256
    assert GB < found["peak"] < 4 * GB
    manifest = read_json(step.made().path / "manifest.json")
    assert manifest["summary"]["micro_batch"] == found["micro_batch"]
    assert "out_of_memory" not in manifest


def test_what_does_not_fit_is_halved_once(world, long, held, tmp_path) -> None:
    whole = case(world, long, tmp_path / "measured", micro_batch=None)
    assert whole.attempt(prepare=lambda: setattr(micro_batch, "LONG", 0.0)) == 0, whole.said()
    fits = whole.made().summary["micro_batch"]
    step = case(world, long, tmp_path / "halved", micro_batch=min(256, round(1.6 * fits)))
    assert step.attempt() == 0, step.said()
    manifest = read_json(step.made().path / "manifest.json")
    assert manifest["out_of_memory"]["rows"] == round(1.6 * fits)
    assert manifest["summary"]["micro_batch"] == round(1.6 * fits) // 2
    assert step.made().summary["train_loss"] == pytest.approx(whole.made().summary["train_loss"], rel=1e-3)
