"""When a training step writes a checkpoint, and what it goes on from: equal to never having stopped.

A checkpoint is written every `checkpoint_seconds`, whenever the best weights so far are found where the best are to be
kept, and when SIGTERM asks the step to stop. It holds all that the rest of the training depends on, and a copy of what
the step has told. The newest one and the best one are kept.

Several ranks decide together, between two optimiser steps: the first rank's clock says when, a signal to any of them
says stop. They ask each other at most about once a second.

A disk without room for a checkpoint does not end the training: what is insured would be lost for the insurance. The
step says so, the checkpoint before it stays, and the next one is tried when it is due. Where the best weights cannot be
kept the step fails, because its result would be another one.
"""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from cdpo import disk, stopping
from cdpo.errors import StepError
from cdpo.files import append_json, read_json_lines
from cdpo.step import Step
from cdpo.store import provenance
from cdpo.train import checkpoint_files as files
from cdpo.train.checkpoint_files import Checkpoint
from cdpo.train.trl_resume import UNWRITABLE, Unreadable, sum_over_ranks

#: seconds, about, between two looks at the clock and at signals where ranks must ask each other
LOOK_SECONDS = 1.0


class Checkpoints:
    """The checkpoints of one training, of `trainer` in `step`; to be used alike by all ranks.

    `resumed_from` lists the optimiser steps from which this and earlier attempts went on; `seconds` is what training
    took in earlier attempts, as far as it was not lost.
    """

    def __init__(self, step: Step, trainer: Any, scoring_seconds: float = 0.0) -> None:
        """`scoring_seconds`: how long the model will be evaluated after training; that is not checkpointed."""
        self.step, self.trainer, self.scoring_seconds = step, trainer, scoring_seconds
        self.room = step.checkpoints
        self.resumed_from: list[int] = []
        self.seconds = 0.0
        self._began = self._written = time.monotonic()
        #: optimiser step and time of the last look, the step of the next one, and that of the last checkpoint
        self._looked, self._looked_at, self._next, self._saved = -1, 0.0, 0, -1
        trainer.checkpoints = self

    @property
    def training_seconds(self) -> float:
        return self.seconds + time.monotonic() - self._began

    def train(self) -> Any:
        """Train from the newest checkpoint that can be used, or from the beginning; what Trainer returns.

        Raises Stopped after SIGTERM, when a checkpoint has been written.
        """
        found = self._begin()
        self._began = self._written = time.monotonic()
        try:
            with stopping.finishing():
                return self.trainer.train(resume_from_checkpoint=None if found is None else str(found.folder))
        except Unreadable as error:
            # it looked whole, and would fail the next attempt too
            if self.step.rank == 0 and found is not None:
                files.remove(found.folder)
            raise StepError(f"{error}. It was removed; the next `cdpo execute` goes on without it") from error

    # -- going on -------------------------------------------------------------------------------------------------

    def _begin(self) -> Checkpoint | None:
        """Choose the checkpoint to go on from, and bring the step's work folder to where it was then."""
        found: Checkpoint | None = None
        if self.step.rank == 0:
            found, why = files.choose(self.room, self._misfit)
            for text in why:
                self.step.note(text if found is not None else f"{text}; training begins anew")
            files.keep(self.room, found)
            self._tell_again(found)
        found = self._of_first_rank(found)
        if found is not None:
            self._saved = found.step
            self.resumed_from = [*found.said["resumed_from"], found.step]
            self.seconds = found.said["seconds"]
            self.scoring_seconds = max(self.scoring_seconds, found.said["scoring_seconds"])
            self.step.note(_goes_on(found, self.step.device.processes))
        return found

    def _misfit(self, found: Checkpoint) -> str | None:
        said, device = found.said, self.step.device
        if said["layout"] != self._layout():
            return f"its files are {said['layout']}'s, and this attempt trains with {self._layout()}"
        if self._layout() != "DDP" and said["processes"] != device.processes:
            return f"it holds {said['processes']} processes' parts of the model, and there are {device.processes} now"
        problem: str | None = self.trainer.misfit(found.folder)
        if problem is not None and said["versions"] != provenance.versions():
            written = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
            return f"{problem} (it was written by {written})"
        return problem

    def _layout(self) -> str:
        """Who shares the model out among the processes; DDP, and a process alone, do not."""
        kind = self.step.device.distributed_type
        return kind if kind in ("DEEPSPEED", "FSDP") else "DDP"

    def _tell_again(self, found: Checkpoint | None) -> None:
        """Curves and samples as they were when the checkpoint was written; what came after it will come again."""
        metrics, events = self.step.work / "metrics.jsonl", self.step.work / "events.jsonl"
        if found is None or not (found.folder / metrics.name).exists():
            metrics.unlink(missing_ok=True)
        else:
            shutil.copyfile(found.folder / metrics.name, metrics)
        if found is not None:
            # events are followed while they are written, so that none is taken back
            told = {(event["step"], event["prompt_id"]) for event in sample_events(self.step)}
            for event in read_json_lines(found.folder / "samples.jsonl"):
                if (event["step"], event["prompt_id"]) not in told:
                    append_json(events, event)

    # -- between two optimiser steps ------------------------------------------------------------------------------

    def after_step(self) -> None:
        """Called when an optimiser step has been taken, logged and evaluated. Raises Stopped where SIGTERM came."""
        at, last = self.trainer.state.global_step, self.trainer.control.should_training_stop
        if at == self._looked or (at < self._next and not last):
            return
        stop, due = self._look(at, last)
        if (stop or due) and self._saved != at:
            self.save()
        if stop:
            kept = f"the next attempt goes on from optimiser step {self._saved}" if self._saved >= 0 else ""
            self.step.note(f"stopped after optimiser step {at}" + (f"; {kept}" if kept else ""))
            raise stopping.Stopped

    def _look(self, at: int, last: bool) -> tuple[bool, bool]:
        """Whether to stop, whether a checkpoint is due: all ranks get the same answer."""
        now = time.monotonic()
        # what comes after the last step is lost to a kill as well
        waited = now - self._written + (self.scoring_seconds if last else 0.0)
        per_step = (now - self._looked_at) / max(1, at - self._looked) if self._looked >= 0 else LOOK_SECONDS
        steps = 1 if self.trainer.args.world_size == 1 else max(1, int(LOOK_SECONDS / max(per_step, 1e-6)))
        first = self.step.rank == 0
        own = [
            float(stopping.asked()),
            float(first and waited >= self.step.device.checkpoint_seconds),
            float(first and steps),
        ]
        stop, due, ahead = sum_over_ranks(own, self.trainer.args)
        self._looked, self._looked_at, self._next = at, now, at + int(ahead)
        return stop > 0, due > 0

    def save(self) -> None:
        """Write a checkpoint of the training as it is now, then remove those that it stands for."""
        state, began = self.trainer.state, time.monotonic()
        folder = files.folder_of(self.room, state.global_step)
        best = state.best_global_step == state.global_step
        if best:
            state.best_model_checkpoint = str(folder)
        problem = self._together(lambda: self._write(folder)) or self._together(lambda: self._seal(folder))
        self._written = time.monotonic()
        if problem is not None:
            self._give_up(folder, problem, best)
            return
        self._saved = state.global_step
        if self.step.rank == 0:
            files.keep(self.room, Checkpoint(folder, state.global_step, self._said()))
            size, seconds = files.size_of(folder), self._written - began
            text = f"checkpoint of optimiser step {state.global_step}: {size / 1e6:.0f} MB in {seconds:.1f} s"
            print(text, file=sys.stderr, flush=True)

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.trainer.write_checkpoint(folder)
        if self.step.rank == 0:
            if (self.step.work / "metrics.jsonl").exists():
                shutil.copyfile(self.step.work / "metrics.jsonl", folder / "metrics.jsonl")
            for event in sample_events(self.step):
                append_json(folder / "samples.jsonl", event)

    def _seal(self, folder: Path) -> None:
        if self.step.rank == 0:
            files.seal(folder, self._said())

    def _said(self) -> dict[str, Any]:
        state = self.trainer.state
        keeps_best = self.trainer.args.load_best_model_at_end
        return {
            "step": state.global_step,
            "of": state.max_steps,
            "time": round(time.time(), 3),
            "best": state.best_global_step if keeps_best else None,
            "resumed_from": self.resumed_from,
            "seconds": round(self.training_seconds, 3),
            "scoring_seconds": self.scoring_seconds,
            "processes": self.step.device.processes,
            "layout": self._layout(),
            "versions": provenance.versions(),
        }

    def _together(self, write: Callable[[], None]) -> str | None:
        """Have all ranks write; the first problem that any of them met."""
        problem = None
        try:
            write()
        except UNWRITABLE as error:
            problem = disk.explained(error, self.room) or f"{type(error).__name__}: {error}"
        everyone = gather_object([problem]) if self.trainer.args.world_size > 1 else [problem]
        return next((each for each in everyone if each is not None), None)

    def _give_up(self, folder: Path, problem: str, best: bool) -> None:
        if self.step.rank == 0:
            files.remove(folder)
        what = f"the checkpoint of optimiser step {self.trainer.state.global_step} could not be written ({problem})"
        if best:
            raise StepError(
                f"{what}, and it holds the best weights so far, which load_best_model_at_end is to keep: make room in "
                f"{self.room}, then `cdpo execute` goes on from the checkpoint before it"
            )
        self.step.note(f"{what}; training goes on, and what a kill would lose grows until one can be")

    def _of_first_rank(self, found: Checkpoint | None) -> Checkpoint | None:
        everyone: list[Checkpoint | None] = [found]
        if self.trainer.args.world_size > 1:
            broadcast_object_list(everyone)
        return everyone[0]


def sample_events(step: Step) -> list[dict[str, Any]]:
    """The events of the kind `sample` that a step has told so far."""
    return [event for event in read_json_lines(step.work / "events.jsonl") if event["event"] == "sample"]


def _goes_on(found: Checkpoint, processes: int) -> str:
    minutes = max(0, round((time.time() - found.said["time"]) / 60))
    ago = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min" if minutes else "a moment"
    text = f"goes on from optimiser step {found.step} of {found.said['of']}, saved {ago} ago"
    if (before := found.said["processes"]) != processes:
        text += f" by {before} process(es); with {processes} the result agrees within rounding, not bit for bit"
    return text
