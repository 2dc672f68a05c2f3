"""A training step that was killed or stopped leaves what it leaves when nothing happens to it, bit for bit.

45 rows in global batches of 8 and micro-batches of 3: an epoch has six optimiser steps, the last of five rows.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
from resuming import KILLED, STOPPED, Case, Interrupt, equal

EPOCH = 6
USUAL = {"learning_rate": 1e-2, "batch_size": 8, "num_train_epochs": 2.0, "lr_scheduler_type": "cosine"}
LORA = {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.1}
BETA = {"beta": 0.1}
BEST = {"eval_steps": 2, "load_best_model_at_end": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "SFT": ("SFT", {}, {}),
    "SFT lora": ("SFT", {"lora": LORA}, {}),
    "RM": ("RM", {**BEST}, {}),
    "DPO": ("DPO", {**BETA, **BEST, "loss_type": ["sigmoid", "sft"]}, {"model": "sft"}),
}


@pytest.fixture
def case(request: pytest.FixtureRequest, world: Any, tmp_path: Path) -> Any:
    def make(name: str, **more: Any) -> tuple[Case, Case]:
        """The step that nothing happens to, which writes no checkpoint, and the one that is interrupted."""
        pipeline, params, inputs = CASES[name]
        given = {role: request.getfixturevalue(fixture) for role, fixture in inputs.items()}
        asked = {**USUAL, **params, **more.pop("params", {})}
        quiet = Case(world, tmp_path / "whole", pipeline, asked, device={"checkpoint_seconds": 1e9}, **given)
        return quiet, Case(world, tmp_path / "store", pipeline, asked, **given, **more)

    return make


@pytest.mark.parametrize("name", list(CASES))
def test_killed_in_both_epochs(case: Any, name: str) -> None:
    whole, broken = case(name)
    assert whole.attempt() == 0, whole.said()
    assert broken.attempt(Interrupt(3, signal.SIGKILL)) == KILLED, broken.said()
    assert broken.attempt(Interrupt(EPOCH + 3, signal.SIGKILL)) == KILLED, broken.said()
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())
    assert broken.made().summary["resumed_from"] == [2, EPOCH + 2]
