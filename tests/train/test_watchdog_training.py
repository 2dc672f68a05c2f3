"""The watchdog of training steps: what comes to nothing ends with its cause, and what is only hard goes on."""

import math
from pathlib import Path
from typing import Any

import pytest
from endings import ALWAYS, NEVER, device, ending

from cdpo.data import playground
from cdpo.data.prepared import write_split
from cdpo.errors import StepError
from cdpo.files import read_json_lines
from cdpo.pipelines.dpo import run as run_dpo
from cdpo.pipelines.sail import run as run_sail
from cdpo.train.watchdog import Watchdog

DPO = {"beta": 0.1, "learning_rate": 5e-3, "batch_size": 8, "lr_scheduler_type": "constant"}
RM = {"learning_rate": 5e-3, "batch_size": 8, "lr_scheduler_type": "constant"}
SAIL = {"beta": 0.1, "p": 0.9, "pi": 0.1, "learning_rate": 1e-5, "batch_size": 8, "max_new_tokens": 12}
DIVERGING = {**DPO, "learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0.0}


def changed(world, folder: Path, change, rows: int = 45) -> Path:
    """The playground's data with `change` applied to its training rows."""
    for split, made in playground.make(rows, 12, 10, 0).items():
        write_split(folder, split, [change(row) for row in made] if split == "train" else made)
    return folder


def same(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "rejected": row["chosen"]}


def telling(row: dict[str, Any]) -> dict[str, Any]:
    """The rejected response says that it is one."""
    return {**row, "rejected": [{"role": "assistant", "content": "without without without"}]}


def test_a_loss_that_is_no_number_ends_the_step(world, sft) -> None:
    with pytest.raises(StepError, match=r"the loss is (nan|inf) at optimiser step \d: training has diverged"):
        world.run("DPO", DIVERGING, model=sft, device=device())
    # the point that ended it stands in the curves
    work = max(world.folder.glob("work*"), key=lambda path: path.stat().st_mtime)
    assert not math.isfinite(list(read_json_lines(work / "metrics.jsonl"))[-1]["loss"])


def test_without_a_watchdog_it_goes_on_and_is_not_published(world) -> None:
    params = {**RM, "learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0.0}
    with pytest.raises(StepError, match=r"training has diverged: \d+ of \d+ weight tensors hold NaN or infinite"):
        world.run("RM", params, device={"watchdog": None})
    work = max(world.folder.glob("work*"), key=lambda path: path.stat().st_mtime)
    assert [line["step"] for line in read_json_lines(work / "metrics.jsonl") if "loss" in line][-1] == 6


@pytest.mark.parametrize("pipeline", ["DPO", "RM"])
def test_pairs_of_the_same_response_teach_nothing(world, sft, tmp_path, pipeline: str) -> None:
    params = {**(DPO if pipeline == "DPO" else RM), "max_steps": 10}
    told = r"nothing is learned: at optimiser step 5 the loss is 0.6931\d\d, which is ln 2, and the gradient is 0"
    with pytest.raises(StepError, match=told):
        world.run(pipeline, params, data=changed(world, tmp_path, same), model=sft, device=device(idle_steps=5))


def test_a_learning_rate_of_nothing_teaches_nothing(world, sft) -> None:
    params = {**DPO, "learning_rate": 1e-20, "max_steps": 10}
    with pytest.raises(StepError, match=r"the learning rate is 1.0e-20, as in the 5 steps up to here; raise"):
        world.run("DPO", params, model=sft, device=device(idle_steps=5))


@pytest.mark.parametrize(("change", "accuracy"), [(telling, 1), (same, 0)])
def test_what_needs_no_learning_is_no_data(world, tmp_path, change, accuracy: int) -> None:
    data = changed(world, tmp_path, change, rows=200)
    with pytest.raises(StepError, match=rf"the reward accuracy is exactly {accuracy} on \d+ rows that were new"):
        world.run("RM", RM, data=data, device=device(one_sided_rows=120, idle_steps=None))


def test_rows_that_are_known_by_heart_say_nothing_of_the_data(world) -> None:
    """Eight rows, ten times: from the second time on each of them is right."""
    params = {**RM, "learning_rate": 2e-3, "num_train_epochs": 10.0, "limit": 8}
    work, _ = world.run("RM", params, device=device(one_sided_rows=40))
    assert accuracies(work)[1:] == [1.0] * 9


def test_accuracy_that_becomes_one_in_time_is_learning(world, tmp_path) -> None:
    """Rows that are easy and all new; but not from the start is each of them right, or wrong."""
    data = changed(world, tmp_path, telling, rows=200)
    work, _ = world.run("RM", {**RM, "learning_rate": 1e-4}, data=data, device=device(one_sided_rows=80))
    assert accuracies(work)[-12:] == [1.0] * 12


def accuracies(work: Path) -> list[float]:
    return [point["accuracy"] for point in read_json_lines(work / "metrics.jsonl") if "accuracy" in point]


def test_a_policy_that_forgets_the_chosen_responses_ends(world, sft) -> None:
    params = {**DPO, "beta": 0.01, "learning_rate": 3e-2, "num_train_epochs": 10.0}
    with pytest.raises(StepError, match=r"log-probability of the chosen responses is \d+.\d\d nats per token below"):
        world.run("DPO", params, model=sft, device=device())


@pytest.mark.parametrize(("sign", "told"), [(ALWAYS, "32 of 32 responses .* are empty"), (NEVER, "never end")])
def test_samples_of_sail_are_looked_at(world, sft, tmp_path, sign: float, told: str) -> None:
    policy = ending(world.base, tmp_path / "steps/SFT/x/out", sign)
    step = world.step("DPP", SAIL, model=policy, device=device(responses=30))
    step.work = tmp_path / "work/key"
    (step.work / "out").mkdir(parents=True)
    with pytest.raises(StepError, match=told):
        run_sail(step)


def test_a_base_model_may_go_on_for_ever(world, tmp_path) -> None:
    policy = ending(world.base, tmp_path / "named", NEVER)
    params = {**SAIL, "max_steps": 2}
    step = world.step("DPP", params, model=policy, device=device(responses=10))
    assert run_sail(step)["optimiser_steps"] == 2


def test_what_is_counted_is_in_the_checkpoint(world, sft, tmp_path, monkeypatch) -> None:
    """An attempt that ended after two idle steps and their checkpoints, and one that goes on."""
    data = changed(world, tmp_path / "data", same)
    params = {**DPO, "max_steps": 10}
    often = {"checkpoint_seconds": 0.0, "micro_batch": 8}
    step = world.step("DPO", params, data=data, model=sft, device={**often, **device(idle_steps=3)})
    with pytest.raises(StepError, match=r"at optimiser step 3 .* as in the 3 steps up to here"):
        run_dpo(step)
    recalled = []
    original = Watchdog.recall

    def recall(self: Watchdog, kept: Any) -> None:
        original(self, kept)
        recalled.append((self.last, self.idle, self.rows))

    monkeypatch.setattr(Watchdog, "recall", recall)
    step.device.watchdog = device(idle_steps=5)["watchdog"]
    with pytest.raises(StepError, match=r"at optimiser step 5 .* as in the 5 steps up to here"):
        run_dpo(step)
    assert "goes on from optimiser step 2" in (step.work / "events.jsonl").read_text()
    assert recalled == [(0, 0, 0), (2, 2, 16)]


def test_long_scoring_is_no_silence(world, monkeypatch) -> None:
    """Before and after training rows are scored, which has no progress to tell: a sign of life at least so often."""
    monkeypatch.setattr("cdpo.step.ALIVE_SECONDS", 0.0)
    work, summary = world.run("RM", {**RM, "max_steps": 1, "batch_size": 16}, device={"micro_batch": 4})
    signs = [event["event"] for event in read_json_lines(work / "events.jsonl")]
    scored = 3 + 3 + 3  # eval before training; eval and tune after it: 10 or 12 rows, four at a time
    assert signs.count("alive") == scored + 3, "and every micro-batch but the last of the optimiser step"
    assert summary["optimiser_steps"] == 1
