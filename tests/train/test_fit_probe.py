"""Measured fit: a probe in a process of its own finds the micro-batch, which is remembered, and changes no result."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from resuming import Case, equal

from cdpo.config.params import TrainingParams
from cdpo.files import read_json
from cdpo.measured import Measurement, remember, setup_of
from cdpo.pipeline import pipelines
from cdpo.train import micro_batch, probe
from cdpo.train.trl_adapter import DPOTrainer

GB = 10**9
PARAMS = {"learning_rate": 1e-2, "batch_size": 16, "max_steps": 3}


def long_steps() -> None:
    """In the process of a step: every step counts as long."""
    micro_batch.LONG = 0.0


def measured(case: Case) -> list[dict[str, Any]]:
    return [read_json(path) for path in (case.store.root / "measured").glob("*.json")]


def measurement(case: Case, micro_batch: int, most: int = 16) -> Measurement:
    """As if it had been measured for the step of `case`; its longest row has 22 tokens."""
    case.describe()
    case.attempts = 0
    planned = read_json(case.work / "step.json")["planned"]
    params = pipelines()[case.pipeline].params.model_validate(case.params)
    assert isinstance(params, TrainingParams)
    setup = setup_of(case.pipeline, params, planned, lambda key: {}, case.device.processes)
    return Measurement("cpu", case.device.memory or 0, setup, 22, micro_batch, most, peak=GB)


def asks(world: Any, folder: Path, pipeline: str = "SFT", **options: Any) -> Case:
    """A step whose devices.yaml names no micro-batch."""
    device = {"micro_batch": None, "memory": 64 * GB, **options.pop("device", {})}
    return Case(world, folder, pipeline, {**PARAMS, **options.pop("params", {})}, device=device, **options)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["RM", "DPO", "DPP"])
def test_a_probe_of_every_kind_changes_nothing(world: Any, sft: Path, tmp_path: Path, pipeline: str) -> None:
    own = {"DPO": {"beta": 0.1, "lora": {"r": 4, "lora_alpha": 8.0}, "eval_steps": 2, "load_best_model_at_end": True}}
    own["DPP"] = {"beta": 0.1, "p": 0.4, "pi": 0.1, "max_new_tokens": 6, "stretch_epochs": False}
    given = {"params": own.get(pipeline, {}), "model": world.base if pipeline == "RM" else sft}
    without, probed = (asks(world, tmp_path / name, pipeline, **given) for name in "ab")
    assert without.attempt() == 0, without.said()
    assert probed.attempt(prepare=long_steps) == 0, probed.said()
    equal(without.made(), probed.made())
    assert [each["micro_batch"] for each in measured(probed)] == [16], probed.said()


def test_what_was_measured_is_not_measured_again(world: Any, tmp_path: Path) -> None:
    step = asks(world, tmp_path)
    remember(step.store, measurement(step, micro_batch=5))
    assert step.attempt(prepare=long_steps) == 0, step.said()
    assert step.made().summary["micro_batch"] == 5
    assert step.notes() == []


def test_a_short_step_measures_nothing(world: Any, tmp_path: Path) -> None:
    step = asks(world, tmp_path, params={"max_steps": 1})
    assert step.attempt() == 0, step.said()
    assert step.made().summary["micro_batch"] == 16
    assert measured(step) == []


def test_the_micro_batch_of_devices_yaml_stands(world: Any, tmp_path: Path) -> None:
    step = asks(world, tmp_path, params={"max_steps": 1}, device={"micro_batch": 7})
    remember(step.store, measurement(step, micro_batch=5))
    assert step.attempt(prepare=long_steps) == 0, step.said()
    assert step.made().summary["micro_batch"] == 7


@pytest.mark.slow
def test_two_ranks_take_the_same(world: Any, tmp_path: Path) -> None:
    device = {"processes": 2, "distributed_type": "MULTI_CPU"}
    step = asks(world, tmp_path, params={"max_steps": 2}, device=device)
    remember(step.store, measurement(step, micro_batch=3, most=8))
    assert step.attempt() == 0, step.said()
    assert step.made().summary["micro_batch"] == 3
    assert step.made().summary["processes"] == 2


@pytest.mark.slow
def test_not_even_one_row_fits(world: Any, tmp_path: Path) -> None:
    """In less memory than Python itself takes; the next step that is like it does not try."""
    step = asks(world, tmp_path, device={"memory": GB // 10})
    for _ in range(2):
        assert step.attempt(prepare=long_steps) == 1
        reason = read_json(step.work / "failure.json")["reason"]
        assert reason.startswith("not even one row of ")
        assert "into the memory of cpu, as was measured. What helps: fewer tokens" in reason
    (found,) = measured(step)
    assert (found["micro_batch"], found["peak"]) == (0, None)
    # the second attempt has not measured: its only note would say so
    assert step.notes() == []


@pytest.mark.slow
def test_what_ran_out_all_the_same_is_remembered_as_half(world: Any, tmp_path: Path) -> None:
    step = asks(world, tmp_path)
    remember(step.store, measurement(step, micro_batch=8))

    def narrow() -> None:
        from cdpo.train import trl_adapter

        def weighted_loss(*_: Any, **__: Any) -> Any:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")

        trl_adapter.SFTTrainer.weighted_loss = weighted_loss

    assert step.attempt(prepare=narrow) == 0, step.said()
    assert step.made().summary["micro_batch"] == 4
    assert [each["micro_batch"] for each in measured(step)] == [4]


@pytest.mark.slow
def test_a_probe_that_breaks_is_told_and_the_default_is_taken(world: Any, tmp_path: Path) -> None:
    step = asks(world, tmp_path)

    def broken() -> None:
        long_steps()
        probe.STEPS = 0  # refused by the schema of the parameters

    assert step.attempt(prepare=broken) == 0, step.said()
    assert any("could not be measured, and the default micro-batch is taken" in each for each in step.notes())
    assert measured(step) == []


@pytest.mark.parametrize("most", [1, 2, 3, 8, 16, 31, 64])
def test_the_largest_even_cut_that_fits_is_found(most: int) -> None:
    cuts = {math.ceil(most / passes) for passes in range(1, most + 1)}
    for limit in range(most + 2):
        best = max((cut for cut in cuts if cut <= limit), default=0)
        for guess in (float(limit), limit + 0.9, math.inf):
            found = probe.largest(lambda count, limit=limit: count <= limit, lambda guess=guess: guess, most)
            assert found == best, (limit, guess)


def test_rows_of_a_policy_that_samples_are_as_long_as_its_samples_may_be() -> None:
    short = {"prompt_ids": [1] * 5, "chosen_ids": [2, 3], "rejected_ids": [4]}
    long = {"prompt_ids": [1] * 5, "chosen_ids": [2] * 9, "rejected_ids": [4] * 3}
    trainer = SimpleNamespace(batches=SimpleNamespace(dataset=[short, long]), row_length=DPOTrainer.row_length)
    found = probe._longest(trainer, SimpleNamespace(room=6))
    assert [[len(row[name]) for name in row] for row in found] == [[5, 9, 6], [5, 6, 6]]
    assert len(short["chosen_ids"]) == 2
    assert probe._longest(trainer, SimpleNamespace())[1] == short


def test_memory_that_does_not_grow_evenly_is_followed() -> None:
    """Two rows need much more than one, the others little: the first guess is far too low."""
    peaks: dict[int, int] = {}

    def fits(count: int) -> bool:
        peaks[count] = 100 + (50 if count > 1 else 0) + 3 * count
        return peaks[count] <= 200

    assert probe.largest(fits, lambda: probe._guess(peaks, 200), 32) == 16
    assert list(peaks) == [1, 2, 3, 4, 5, 7, 8, 11, 16, 32]


def test_a_guess_is_tried_first_and_the_next_larger_one_must_fail() -> None:
    tried = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= 16

    assert probe.largest(fits, lambda: 20.0, 64) == 16
    assert tried == [1, 2, 16, 22]
