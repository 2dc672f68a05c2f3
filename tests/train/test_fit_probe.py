"""Measured fit: a probe in a process of its own finds the micro-batch, which is remembered, and changes no result."""

from pathlib import Path
from typing import Any

from resuming import Case, equal

from cdpo.files import read_json
from cdpo.train import micro_batch

GB = 10**9
PARAMS = {"learning_rate": 1e-2, "batch_size": 16, "max_steps": 3}


def long_steps() -> None:
    """In the process of a step: every step counts as long."""
    micro_batch.LONG = 0.0


def measured(case: Case) -> list[dict[str, Any]]:
    return [read_json(path) for path in (case.store.root / "measured").glob("*.json")]


def asks(world: Any, folder: Path, pipeline: str = "SFT", **options: Any) -> Case:
    """A step whose devices.yaml names no micro-batch."""
    device = {"micro_batch": None, "memory": 64 * GB, **options.pop("device", {})}
    return Case(world, folder, pipeline, {**PARAMS, **options.pop("params", {})}, device=device, **options)


def test_a_probe_changes_nothing(world: Any, tmp_path: Path) -> None:
    without, probed = asks(world, tmp_path / "a"), asks(world, tmp_path / "b")
    assert without.attempt() == 0, without.said()
    assert measured(without) == []
    assert probed.attempt(prepare=long_steps) == 0, probed.said()
    equal(without.made(), probed.made())
    (found,) = measured(probed)
    assert (found["card"], found["memory"], found["micro_batch"], found["most"]) == ("cpu", 64 * GB, 16, 16)
    assert 0.1 * GB < found["peak"] < 2 * GB
    assert any("rows at once need" in each for each in probed.notes())
    assert not (probed.work / "probe").exists()
