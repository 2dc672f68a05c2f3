"""The training's side of its trackers: starts a process for each (cdpo/train/trackers.py), says how the step ended."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback

from cdpo import stopping
from cdpo.step import Step
from cdpo.train.trackers import FAILED, FINISHED, LAST_SECONDS, STOPPED

#: seconds that the trackers may take when a step has ended, beyond their own limit, and when it is to stop
SPARE_SECONDS, STOP_SECONDS = 5.0, 5.0
#: variables that hold what a tracker has no business with
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|_KEY$|^KEY$")


@contextlib.contextmanager
def tracked(step: Step, trainer: Any) -> Iterator[None]:
    """While entered, the trackers of devices.yaml are told of the step that `trainer` trains, by its first rank.

    Nothing that they do fails the step or holds it up for more than seconds at its end.
    """
    if step.rank or not step.device.report_to:
        yield
        return
    tracking = Tracking(step)
    trainer.add_callback(tracking)
    state = FAILED
    try:
        yield
        state = FINISHED
    except stopping.Stopped:
        state = STOPPED
        raise
    finally:
        tracking.end(state)


class Tracking(TrainerCallback):  # type: ignore[misc]
    """The processes of one step's trackers. They begin with the training: then metrics.jsonl is what it is to be."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        for name in self.step.device.report_to:
            command = [sys.executable, "-P", "-m", "cdpo.train.trackers", str(self.step.work), name]
            try:
                self.processes[name] = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=_environment(name)
                )
            except OSError as error:
                self.step.note(f"report_to: {name} cannot be started ({error}); the training itself goes on")

    def end(self, state: str) -> None:
        """Say how the step ended, and wait for the trackers to say so, for seconds at most."""
        for process in self.processes.values():
            assert process.stdin is not None
            # where it is gone it has said why
            with contextlib.suppress(OSError):
                process.stdin.write(state.encode() + b"\n")
                process.stdin.close()
        limit = time.monotonic() + (STOP_SECONDS if state == STOPPED else LAST_SECONDS + SPARE_SECONDS)
        for process in self.processes.values():
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment(name: str) -> dict[str, str]:
    """This process's, without the secrets of others: what a tracker does not have it cannot send."""
    own = f"{name.upper()}_"
    kept = {each: value for each, value in os.environ.items() if each.startswith(own) or not SECRET.search(each)}
    # wandb-core reports on itself otherwise
    return {**kept, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "PYTHONUNBUFFERED": "1"}
