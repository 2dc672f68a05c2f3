"""A training step that was killed or stopped leaves what it leaves when nothing happens to it, bit for bit.

45 rows in global batches of 8 and micro-batches of 3: an epoch has six optimiser steps, the last of five rows. A point
is logged every four steps, and in most cases the checkpoint that is gone on from lies between two points.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from resuming import KILLED, STOPPED, Case, Interrupt, equal
from transformers import TrainerCallback

from cdpo.train import arguments, fit

EPOCH, LAST = 6, 12
USUAL = {"learning_rate": 1e-2, "batch_size": 8, "num_train_epochs": 2.0, "lr_scheduler_type": "cosine"}
LORA = {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.1}
BETA = {"beta": 0.1}
BEST = {"eval_steps": 2, "load_best_model_at_end": True}
ONLINE = {**BETA, "max_new_tokens": 6, "staleness": 2, "baseline": "moving"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "SFT": ("SFT", {}, {}),
    "SFT lora": ("SFT", {"lora": LORA}, {}),
    "RM": ("RM", {"eval_steps": 5}, {}),
    "DPO": ("DPO", {**BETA, **BEST, "loss_type": ["sigmoid", "sft"]}, {"model": "sft"}),
    "DPO lora": ("DPO", {**BETA, "lora": {**LORA, "lora_dropout": 0.0}}, {"model_adapter": "sft_adapter"}),
    "DPP": ("DPP", {**ONLINE, "p": 0.4, "pi": 0.3}, {"model": "sft"}),
    "DPR": ("DPR", {**ONLINE, "g": 0.4, "gamma": 0.3, "reward_labels": "bt"}, {"model": "sft", "reward": "rm"}),
}
SLOW = {"SFT lora", "DPO lora", "DPR"}
MOST = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]


@pytest.fixture(scope="module")
def rm(world: Any) -> Path:
    return world.run("RM", {"learning_rate": 1e-2, "max_steps": 4, "batch_size": 16})[0] / "out"


@pytest.fixture(scope="module")
def wholes() -> dict[str, Case]:
    return {}


@pytest.fixture
def case(
    request: pytest.FixtureRequest, world: Any, wholes: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """The step that nothing happens to, which writes no checkpoint, and the same one to be interrupted."""
    monkeypatch.setattr(arguments, "LOGGED", 3)

    def make(name: str, *, params: dict[str, Any] | None = None, **device: Any) -> tuple[Case, Case]:
        pipeline, own, inputs = CASES[name]
        given = {role: request.getfixturevalue(fixture) for role, fixture in inputs.items()}
        asked = {**USUAL, **own, **(params or {})}
        named = json.dumps([name, asked])
        if named not in wholes:
            folder = world.folder / f"whole{len(wholes)}"
            whole = Case(world, folder, pipeline, asked, device={"checkpoint_seconds": 1e9}, **given)
            assert whole.attempt() == 0, whole.said()
            assert not whole.made().summary["resumed_from"]
            wholes[named] = whole
        return wholes[named], Case(world, tmp_path / "store", pipeline, asked, device=device, **given)

    return make


@pytest.mark.parametrize("name", MOST)
def test_killed_in_both_epochs(case: Any, name: str) -> None:
    whole, broken = case(name)
    assert broken.attempt(Interrupt(3, signal.SIGKILL)) == KILLED, broken.said()
    assert broken.attempt(Interrupt(EPOCH + 4, signal.SIGKILL)) == KILLED, broken.said()
    assert "goes on from optimiser step 2 of 12, saved a moment ago" in broken.notes()
    assert broken.checkpoints[-1] == EPOCH + 3
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())
    assert broken.made().summary["resumed_from"] == [2, EPOCH + 3]


@pytest.mark.parametrize("name", MOST)
@pytest.mark.slow
def test_stopped_in_the_middle_of_a_step(case: Any, name: str) -> None:
    """The step is finished, a checkpoint written, and nothing has failed; the next attempt goes on after it."""
    whole, broken = case(name, checkpoint_seconds=1e9)
    assert broken.attempt(Interrupt(3, signal.SIGTERM)) == STOPPED, broken.said()
    assert broken.checkpoints[-1] == 3
    assert not (broken.work / "failure.json").exists()
    assert "stopped after optimiser step 3; the next attempt goes on from optimiser step 3" in broken.notes()
    # at the end of an epoch, too
    assert broken.attempt(Interrupt(EPOCH, signal.SIGTERM)) == STOPPED, broken.said()
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())
    assert broken.made().summary["resumed_from"] == [3, EPOCH]


def test_a_second_signal_ends_it_at_once(case: Any) -> None:
    whole, broken = case("SFT", checkpoint_seconds=1e9)
    assert broken.attempt(Interrupt(3, signal.SIGTERM, times=2)) == STOPPED
    assert broken.checkpoints == []
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())


def test_a_signal_outside_of_training_ends_it_at_once(case: Any) -> None:
    whole, broken = case("SFT", checkpoint_seconds=1e9)

    def stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    def before_training() -> None:
        fit.Checkpoints = stop  # type: ignore[misc]

    began = time.monotonic()
    assert broken.attempt(prepare=before_training) == STOPPED
    assert time.monotonic() - began < 30
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())


class Evaluated(TrainerCallback):
    """SIGTERM while the step's tune split is scored."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


def test_stopped_while_it_evaluates(case: Any) -> None:
    whole, broken = case("DPO", checkpoint_seconds=1e9)
    assert broken.attempt(Evaluated()) == STOPPED, broken.said()
    assert broken.checkpoints[-1] == 4
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())


@pytest.mark.parametrize("steps", [8, LAST])
def test_stopped_in_the_last_step(case: Any, steps: int) -> None:
    """Training is finished and not a step more is taken, be it in the middle of an epoch; what comes after it is."""
    whole, broken = case("DPO", params={"max_steps": steps}, checkpoint_seconds=1e9)
    assert broken.attempt(Interrupt(steps, signal.SIGTERM)) == STOPPED, broken.said()
    assert broken.attempt(Interrupt(steps + 1, signal.SIGKILL)) == 0, broken.said()
    equal(whole.made(), broken.made())
    assert broken.made().summary["resumed_from"] == [steps]


def test_killed_after_training(case: Any) -> None:
    """Where scoring takes long, what has been trained is written before it."""
    whole, broken = case("SFT", checkpoint_seconds=50.0)

    def long_scoring_that_is_killed() -> None:
        original = fit.Checkpoints
        fit.Checkpoints = lambda step, trainer, seconds: original(step, trainer, seconds + 60.0)  # type: ignore
        fit.settle = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    assert broken.attempt(prepare=long_scoring_that_is_killed) == KILLED, broken.said()
    assert broken.checkpoints == [LAST]
    assert broken.attempt(Interrupt(LAST + 1, signal.SIGKILL)) == 0, broken.said()
    equal(whole.made(), broken.made())


@pytest.mark.parametrize("killed", [3, 7])
def test_early_stopping_goes_on_counting(case: Any, killed: int) -> None:
    """The fourth step is the best; two evaluations later patience is out."""
    params = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "early_stopping_patience": 2, **BEST}
    whole, broken = case("SFT", params=params)
    assert whole.made().summary["optimiser_steps"] == 8
    assert whole.made().summary["best_step"] == 4
    assert broken.attempt(Interrupt(killed, signal.SIGKILL)) == KILLED, broken.said()
    assert broken.checkpoints == ([2] if killed == 3 else [4, 6]), "the newest one and the best one are kept"
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())


def test_what_was_computed_before_training_is_not_computed_again(case: Any) -> None:
    """The policy's scores before training, and the reference's log-probabilities."""
    whole, broken = case("DPO")
    assert broken.attempt(Interrupt(2, signal.SIGKILL)) == KILLED, broken.said()
    kept = {each.name.rsplit("-", 1)[0]: each for each in (broken.work / "ckpt").glob("*.jsonl")}
    assert {name: len(each.read_text().splitlines()) for name, each in kept.items()} == {
        "before": 10,
        "reference-train": 45,
        "reference-tune": 12,
        "reference-eval": 10,
    }
    # a line that its writer did not finish is passed over, and a whole one is taken as it is
    lines = kept["before"].read_text().splitlines()
    place, scores = json.loads(lines[0])
    lines[0] = json.dumps([place, {**scores, "loss": 1000.0}])
    kept["before"].write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:-5])
    assert broken.attempt() == 0, broken.said()
    assert broken.made().summary["before"]["eval"]["loss"] > 100
    whole.made().summary["before"].clear()
    assert broken.made().metrics == whole.made().metrics
