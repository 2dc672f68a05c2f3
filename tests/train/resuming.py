"""Attempts at a training step, each a worker in a process of its own that is killed or stopped where a test wants.

Workers are forked, so that nothing is imported again; all else of them is real: step.json, locks, publishing, signals.
"""

import hashlib
import json
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cdpo.engine import worker
from cdpo.engine.launch import STALE
from cdpo.files import read_json, read_json_lines, write_json
from cdpo.step import Device
from cdpo.store import Store

KILLED, STOPPED = -signal.SIGKILL, 143


class Interrupt(TrainerCallback):
    """Sends this process a signal in the middle of an optimiser step (1 is the first), before its gradient is there."""

    def __init__(self, at: int, number: int, times: int = 1) -> None:
        self.at, self.number, self.times = at, number, times

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class Case:
    """One step: what is asked for, and the folder of a store in which it is made."""

    def __init__(self, world: Any, folder: Path, pipeline: str, params: Mapping[str, Any], **inputs: Any) -> None:
        self.world, self.pipeline, self.params = world, pipeline, dict(params)
        device = {"micro_batch": 3, "checkpoint_seconds": 0.0, **inputs.pop("device", {})}
        self.device = Device(**device)
        self.inputs = {"data": world.data, "model": world.base, **inputs}
        self.store = Store(folder)
        self.key = hashlib.sha256(f"{pipeline}{self.params}".encode()).hexdigest()
        self.attempts = 0

    @property
    def work(self) -> Path:
        return self.store.work(self.key)

    @property
    def checkpoints(self) -> list[int]:
        """The optimiser steps whose checkpoints are there, whole or not."""
        return sorted(int(each.name.split("-")[1]) for each in (self.work / "ckpt").glob("checkpoint-*"))

    def describe(self, **device: Any) -> None:
        """What the engine leaves for a worker."""
        self.attempts += 1
        self.work.mkdir(parents=True, exist_ok=True)
        for name in STALE:
            (self.work / name).unlink(missing_ok=True)
        named = {"pipeline": self.pipeline, "key": self.key, "name": "made", "version": 1, "params": self.params}
        inputs = {role: str(value) for role, value in self.inputs.items()}
        write_json(
            self.work / "step.json",
            {
                **named,
                "seed": 0,
                "inputs": inputs,
                "planned": {role: {"folder": value, "sha256": role} for role, value in inputs.items()},
                "device": {**asdict(self.device), **device},
            },
        )

    def attempt(self, *callbacks: TrainerCallback, prepare: Callable[[], Any] | None = None, **device: Any) -> int:
        """Make the step once; how its worker ended. `callbacks` join its training, `prepare` is called before it."""
        self.describe(**device)
        return ended(forked(lambda: self._run(callbacks, prepare), self.work / f"attempt-{self.attempts}.log"))

    def _run(self, callbacks: tuple[TrainerCallback, ...], prepare: Callable[[], Any] | None) -> int:
        add(callbacks)
        if prepare is not None:
            prepare()
        os.environ[worker.LAUNCH] = json.dumps({"attempt": self.attempts})
        return worker.main(self.work)

    def made(self) -> "Made":
        path = self.store.find(self.key)
        assert path is not None, self.said()
        return Made(path)

    def said(self) -> str:
        """The logs of all attempts."""
        return "\n".join(each.read_text() for each in sorted(self.work.glob("attempt-*.log")))

    def notes(self) -> list[str]:
        """What the last attempt noted."""
        found = self.store.find(self.key) or self.work
        return [each["text"] for each in read_json_lines(found / "events.jsonl") if each["event"] == "note"]


class Made:
    """A published step, as far as it must not depend on interruptions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.summary: dict[str, Any] = read_json(path / "manifest.json")["summary"]

    @property
    def metrics(self) -> list[dict[str, float]]:
        return [
            {name: value for name, value in line.items() if "seconds" not in name}
            for line in read_json_lines(self.path / "metrics.jsonl")
        ]

    @property
    def samples(self) -> list[dict[str, Any]]:
        events = [each for each in read_json_lines(self.path / "events.jsonl") if each["event"] == "sample"]
        return [{name: value for name, value in each.items() if name != "time"} for each in events]

    @property
    def files(self) -> dict[str, str]:
        """The sha256 of everything that the step leaves."""
        return {name: each["sha256"] for name, each in read_json(self.path / "manifest.json")["outputs"].items()}

    @property
    def told(self) -> dict[str, Any]:
        """The summary without what was measured of this very run."""
        own = {"training_seconds", "training_tokens_per_second", "seconds", "resumed_from", "reference_rows"}
        return {name: value for name, value in self.summary.items() if name not in own}


def equal(one: Made, other: Made) -> None:
    """Bit for bit."""
    assert one.metrics == other.metrics
    assert len(one.metrics) > 1
    assert one.files == other.files
    assert any(name.endswith(".safetensors") for name in one.files)
    assert one.samples == other.samples
    assert one.told == other.told


def add(callbacks: tuple[TrainerCallback, ...]) -> None:
    """Have the next training of this process call them too."""
    from cdpo.train import fit

    original = fit.add_callbacks

    def add_callbacks(trainer: Any, *arguments: Any, **options: Any) -> None:
        original(trainer, *arguments, **options)
        for each in callbacks:
            trainer.add_callback(each)

    fit.add_callbacks = add_callbacks


def forked(run: Callable[[], int], log: Path) -> int:
    """The pid of a child that does this alone, with its output in `log`."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code of a child, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
