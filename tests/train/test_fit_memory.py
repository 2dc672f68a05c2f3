"""A training step that truly runs out of memory: it goes on from its checkpoint with half as many rows at once."""

import resource
from pathlib import Path
from typing import Any

import pytest
from resuming import Case
from safetensors.torch import load_file
from transformers import TrainerCallback

from cdpo.data import playground
from cdpo.data.prepared import write_split
from cdpo.data.tiny import build_tiny
from cdpo.files import read_json
from cdpo.train import micro_batch

SPEC = {"kind": "tiny", "seed": 0, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TOKENS = 900
#: all pairs of tokens are kept, some 50 MB for a row, in pieces so large that the system takes them back at once
PARAMS = {"batch_size": 16, "learning_rate": 1e-2, "attn_implementation": "eager", "max_steps": 3}
MIB, GB = 1 << 20, 10**9


class Bounded(TrainerCallback):
    """From the second optimiser step on the address space may grow by so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            resource.setrlimit(resource.RLIMIT_AS, (address_space("VmSize") + self.room, resource.RLIM_INFINITY))


class Growth(TrainerCallback):
    """Writes by how much the address space grew within the second optimiser step."""

    def __init__(self, told: Path) -> None:
        self.told = told

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.told.write_text(str(address_space("VmSize")))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.told.write_text(str(address_space("VmPeak") - int(self.told.read_text())))


def address_space(name: str) -> int:
    """`VmSize` (now) or `VmPeak` of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data` and `base`: rows of hundreds of tokens, and a model that takes them."""
    folder = tmp_path_factory.mktemp("long")
    for split, rows in playground.make(64, 4, 4, 0).items():
        for row in rows:
            words = row["chosen"][0]["content"].split()
            row["chosen"] = [{"role": "assistant", "content": " ".join((words * TOKENS)[:TOKENS])}]
        write_split(folder / "data", split, rows)
    build_tiny({**SPEC, "max_position_embeddings": 1024}, folder / "base")
    return folder


def case(world: Any, long: Path, folder: Path, micro_batch: int) -> Case:
    device = {"micro_batch": micro_batch, "checkpoint_seconds": 0.0}
    return Case(world, folder, "SFT", PARAMS, data=long / "data", model=long / "base", device=device)


def weights(made: Any) -> dict[str, Any]:
    return load_file(made.path / "out/model.safetensors")


@pytest.mark.slow
def test_it_goes_on_with_half_the_rows_and_comes_to_the_same(world: Any, long: Path, tmp_path: Path) -> None:
    growth = {}
    for rows in (16, 8):
        whole = case(world, long, tmp_path / f"whole{rows}", rows)
        assert whole.attempt(Growth(tmp_path / "told")) == 0, whole.said()
        growth[rows] = int((tmp_path / "told").read_text())
    assert growth[16] - growth[8] > 150 * MIB, "the two do not differ enough to be told apart"

    broken = case(world, long, tmp_path / "broken", 16)
    assert broken.attempt(Bounded((growth[16] + growth[8]) // 2)) == 0, broken.said()
    assert broken.attempts == 1
    said = broken.notes()
    assert any(each.startswith("out of memory with 16 rows at once ([enforce fail at alloc_cpu") for each in said), said
    assert any("goes on from optimiser step 1 of 3" in each for each in said), said
    made, undisturbed = broken.made(), whole.made()
    manifest = read_json(made.path / "manifest.json")
    assert manifest["key"] == broken.key
    assert manifest["out_of_memory"]["rows"] == 16
    assert (manifest["summary"]["micro_batch"], undisturbed.summary["micro_batch"]) == (8, 8)
    assert manifest["summary"]["resumed_from"] == [1]

    whole16 = case(world, long, tmp_path / "whole16", 16).made()
    assert [point["step"] for point in made.metrics] == [1, 2, 3]
    for point, other in zip(made.metrics, whole16.metrics, strict=True):
        assert point["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for name, value in weights(made).items():
        assert (value - weights(whole16)[name]).abs().max() < 1e-4, name


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["address space", "share of the machine"])
def test_a_probe_finds_what_fits_before_anything_is_trained(world: Any, long: Path, tmp_path: Path, limit: str) -> None:
    bounded = limit == "address space"
    share = 1000 * GB if bounded else 1.1 * GB
    device = {"micro_batch": None, "memory": int(share)}
    step = Case(world, tmp_path, "SFT", PARAMS, data=long / "data", model=long / "base", device=device)

    def prepare() -> None:
        micro_batch.LONG = 0.0
        if bounded:  # what this process starts is bounded like it
            resource.setrlimit(resource.RLIMIT_AS, (int(3.1 * GB), resource.RLIM_INFINITY))

    assert step.attempt(prepare=prepare) == 0, step.said()
    (found,) = (read_json(path) for path in (step.store.root / "measured").glob("*.json"))
    assert found["most"] == 16
    assert 1 <= found["micro_batch"] < 16
    assert found["peak"] <= 0.9 * share
    manifest = read_json(step.made().path / "manifest.json")
    assert manifest["summary"]["micro_batch"] == found["micro_batch"]
    # An address space has no size that a probe could leave a margin of: there a step may run out all the same, and then
    # begins again with half.
    assert bounded or "out_of_memory" not in manifest


def test_responses_that_do_not_fit_are_sampled_in_halves(world: Any, sft: Path, tmp_path: Path) -> None:
    """SAIL's own samples: the batch that ran out of memory is the one that is named and halved."""

    def narrow() -> None:
        from cdpo.sail import workshop

        original = workshop.generate

        def generate(*args: Any, batch_size: int, **options: Any) -> Any:
            if batch_size > 32:
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
            return original(*args, batch_size=batch_size, **options)

        workshop.generate = generate

    params = {"beta": 0.1, "p": 0.5, "pi": 0.1, "learning_rate": 1e-3, "batch_size": 8, "max_new_tokens": 6}
    step = Case(world, tmp_path, "DPP", {**params, "max_steps": 2}, model=sft, device={"micro_batch": 8})
    assert step.attempt(prepare=narrow) == 0, step.said()
    manifest = read_json(step.made().path / "manifest.json")
    assert manifest["out_of_memory"]["rows"] == 64
    assert manifest["summary"]["micro_batch"] == 4
