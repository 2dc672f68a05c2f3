"""Steps of two processes: what was killed or stopped is gone on with by two, bit for bit, and by another number."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState
from resuming import KILLED, STOPPED, Case, Interrupt, Made, add, ended, equal, forked
from sharding import devices_of
from transformers import TrainerCallback

from cdpo.engine.ranks import launchers, rank
from cdpo.files import read_json
from cdpo.store import publish
from cdpo.train import arguments, checkpoints
from tests.conftest import ROOT

TWO = {"processes": 2, "distributed_type": "MULTI_CPU"}
SFT = {"learning_rate": 1e-2, "batch_size": 8, "num_train_epochs": 2.0, "lr_scheduler_type": "cosine"}
LORA = {"lora": {"r": 4, "lora_alpha": 8.0, "lora_dropout": 0.1}}
DPP = {**SFT, "beta": 0.1, "max_new_tokens": 6, "staleness": 1, "baseline": "moving", "p": 0.4, "pi": 0.3}
DPP |= {"eval_steps": 4, "load_best_model_at_end": True}


@pytest.fixture(autouse=True)
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps between two points of a curve, so that checkpoints lie between them."""
    monkeypatch.setattr(arguments, "LOGGED", 3)


class Pair(Case):
    """A step whose two ranks are forked here, where torchrun would start them and import everything twice."""

    def start(self, *callbacks: TrainerCallback, **device: Any) -> list[int]:
        """The pids of the ranks."""
        self.describe(**device)
        for name in (launchers.RESULT, launchers.RANK_FAILURE, launchers.FIRST):
            (self.work / name).unlink(missing_ok=True)
        (self.work / "out").mkdir(exist_ok=True)
        self.store.locks.mkdir(exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [self._rank(number, {**world, "RANK": str(number)}, callbacks) for number in range(2)]

    def _rank(self, number: int, environment: dict[str, str], callbacks: tuple[TrainerCallback, ...]) -> int:
        def run() -> int:
            os.environ.update(environment, LOCAL_RANK=str(number))
            # what this process was in the tests before this one
            AcceleratorState._reset_state(True)
            PartialState._reset_state()
            add(callbacks)
            return rank.main(self.work)

        return forked(run, self.work / f"attempt-{self.attempts}.log")

    def attempt(self, *callbacks: TrainerCallback, **options: Any) -> int:
        codes = [ended(pid) for pid in self.start(*callbacks, **options)]
        assert len(set(codes)) == 1, self.said()
        return codes[0]

    def made(self) -> Made:
        """Publish what the ranks left."""
        found = self.store.find(self.key)
        if found is None:
            summary = read_json(self.work / launchers.RESULT)
            named = {"key": self.key, "pipeline": self.pipeline, "name": "made", "seconds": 0.0}
            publish.stage(self.work, {**named, "summary": summary})
            found = publish.complete(self.store, self.work)
        return Made(found)


@pytest.mark.parametrize(
    ("pipeline", "params"),
    [("DPP", DPP), pytest.param("SFT", {**SFT, **LORA}, marks=pytest.mark.slow)],
    ids=["DPP", "SFT lora"],
)
def test_two_ranks_killed_and_stopped(
    world: Any, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str, params: Any
) -> None:
    monkeypatch.setattr(checkpoints, "LOOK_SECONDS", 0.0)
    quiet = Pair(world, tmp_path / "whole", pipeline, params, device={**TWO, "checkpoint_seconds": 1e9}, model=sft)
    assert quiet.attempt() == 0, quiet.said()
    case = Pair(world, tmp_path / "store", pipeline, params, device=TWO, model=sft)
    assert case.attempt(Interrupt(4, signal.SIGKILL)) == KILLED, case.said()
    assert case.checkpoints == [3]
    assert sorted(each.name for each in (case.work / "ckpt/checkpoint-3").glob("rng*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    # both ranks are told, as the worker tells them, and twice, as a batch system may
    assert case.attempt(Interrupt(9, signal.SIGTERM, times=2), checkpoint_seconds=1e9) == 0, case.said()
    assert "stopped after optimiser step 9; " in case.notes()[-1]
    assert not (case.work / launchers.RESULT).exists()
    assert not (case.work / launchers.RANK_FAILURE).exists()
    assert case.attempt() == 0, case.said()
    equal(quiet.made(), case.made())
    assert case.made().summary["resumed_from"] == [3, 9]


class OneIsTold(TrainerCallback):
    """SIGTERM to the second rank alone."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.process_index == 1 and state.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)


class Slow(TrainerCallback):
    """Steps of an ordinary length: the ranks look at every one, or every other."""

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        time.sleep(0.6)


def test_ranks_stop_together_and_one_goes_on_alone(world: Any, tmp_path: Path) -> None:
    """Where one rank is told to stop; the step is then done by a single process, as near as rounding lets it be."""
    alone = Case(world, tmp_path / "whole", "SFT", SFT, device={"checkpoint_seconds": 1e9})
    assert alone.attempt() == 0, alone.said()
    pair = Pair(world, tmp_path / "store", "SFT", SFT, device={**TWO, "checkpoint_seconds": 1e9})
    assert pair.attempt(OneIsTold(), Slow()) == 0, pair.said()
    (stopped,) = pair.checkpoints
    assert stopped in (5, 6)
    single = Case(world, tmp_path / "store", "SFT", SFT)
    single.attempts = pair.attempts
    assert single.attempt() == 0, single.said()
    (note,) = [each for each in single.notes() if each.startswith("goes on")]
    assert note == (
        f"goes on from optimiser step {stopped} of 12, saved a moment ago by 2 process(es); "
        "with 1 the result agrees within rounding, not bit for bit"
    )
    made, expected = single.made(), alone.made()
    assert made.summary["resumed_from"] == [stopped]
    for mine, theirs in zip(made.metrics, expected.metrics, strict=True):
        for metric in ("loss", "grad_norm", "num_tokens"):
            assert mine[metric] == pytest.approx(theirs[metric], rel=1e-3), (mine["step"], metric)
    assert made.summary["train_loss"] == pytest.approx(expected.summary["train_loss"], rel=1e-4)


class Launched(Case):
    """A step whose worker is started as the engine starts it, with its launcher and ranks."""

    def start(self) -> "subprocess.Popen[bytes]":
        self.describe()
        environment = {**os.environ, "CDPO_LAUNCH": json.dumps({"attempt": self.attempts}), "CUDA_VISIBLE_DEVICES": ""}
        with open(self.work / f"attempt-{self.attempts}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cdpo.engine.worker", self.work], stdout=log, stderr=log, env=environment
            )

    def trains(self, process: "subprocess.Popen[bytes]", beyond: int) -> bool:
        """Wait for a whole checkpoint of an optimiser step after `beyond`."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            whole = (self.work / "ckpt").glob("checkpoint-*/complete.json")
            if max((int(each.parent.name.split("-")[1]) for each in whole), default=0) > beyond:
                return True
            time.sleep(0.05)
        return False


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [None, "zero2", "zero3"])
def test_a_worker_stops_its_ranks(world: Any, tmp_path: Path, launcher: str | None) -> None:
    """torchrun and all: SIGTERM to the worker, a checkpoint by the ranks, 143, no failure; then killed; then done."""
    wanted: dict[str, Any] = {"processes": 2, "micro_batch": 3}
    if launcher is not None:
        wanted["accelerate_config"] = str(ROOT / "configs" / "accelerate" / f"{launcher}.yaml")
    device = asdict(devices_of(tmp_path, {"SFT": wanted}).device("SFT", None))
    params = {**SFT, "num_train_epochs": 30.0}
    alone = Launched(world, tmp_path / "whole", "SFT", params, device={**device, "checkpoint_seconds": 1e9})
    assert alone.start().wait(500) == 0, alone.said()
    case = Launched(world, tmp_path / "store", "SFT", params, device={**device, "checkpoint_seconds": 1.0})
    process = case.start()
    assert case.trains(process, 0), case.said()
    process.terminate()
    assert process.wait(120) == STOPPED, case.said()
    assert not (case.work / "failure.json").exists()
    assert "stopped after optimiser step" in case.notes()[-1]
    assert "Traceback" not in case.said()
    (stopped,) = case.checkpoints
    process = case.start()
    assert case.trains(process, stopped), case.said()
    process.kill()
    process.wait()
    # its ranks die with it, a moment later, and hold the step until then
    deadline = time.monotonic() + 60
    while case.store.is_locked(case.key) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert case.start().wait(500) == 0, case.said()
    equal(alone.made(), case.made())
    assert case.made().summary["resumed_from"][0] == stopped
