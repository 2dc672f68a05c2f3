"""How many rows fit: measured before the first long training step on a device, in a process of its own.

`python -m cdpo.train.probe FOLDER` makes the very trainer of the step that FOLDER/step.json describes, on its longest
rows alone, and takes two optimiser steps of two micro-batches: the first makes the optimiser's state, the second runs
beside it. So all that a step needs is there, and nothing of it is left: the step that asked has other weights, another
optimiser, other random states in a process that was not touched.
"""

import functools
import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cdpo import memory
from cdpo.config.params import TrainingParams
from cdpo.errors import OutOfMemory
from cdpo.files import read_json, write_json
from cdpo.step import Step
from cdpo.train.batches import Row

#: the share of the memory that a step may count on: pieces that are too small for anything take some of the rest
USABLE = {"cuda": 0.92, "cpu": 0.9}
#: optimiser steps, and micro-batches of each
STEPS, PARTS = 2, 2
#: what tells a process that it is one of several
OF_RANKS = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")


class Measured(BaseException):
    """The probe has what it came for; not an Exception, so that nothing takes it for a failure."""


def measure(
    trainer: Any, step: Step, params: TrainingParams, *, most: int, card_memory: int, ranks: int
) -> dict[str, Any]:
    """{"micro_batch", "peak"}: the largest micro-batch, at most `most`, with which `trainer` fits, and its bytes.

    `card_memory`: bytes of the smallest card of all `ranks`.
    """
    rows = _longest(trainer, params)
    if hasattr(trainer, "add_reference"):
        trainer.add_reference(rows)
    room = _room(step, trainer, card_memory, ranks)
    peaks: dict[int, int] = {}

    @functools.cache
    def fits(count: int) -> bool:
        try:
            with memory.recognised():
                peaks[count] = _peak(trainer, rows, count)
            said = f"{peaks[count] / 1e9:.2f} of {room / 1e9:.2f} GB"
        except OutOfMemory as error:
            said = str(error)
        # an error holds on to what was on the stack, so not before it is gone
        _forget(trainer)
        print(f"{count} rows at once: {said}", file=sys.stderr, flush=True)
        return peaks.get(count, sys.maxsize) <= room

    # on a CPU nobody is faster for more rows than the default: it is only asked whether that fits
    found = most if step.device.kind == "cpu" and fits(most) else largest(fits, lambda: _guess(peaks, room), most)
    return {"micro_batch": found, "peak": peaks.get(found) if found else None}


def largest(fits: Callable[[int], bool], guess: Callable[[], float], most: int) -> int:
    """The largest micro-batch that fits among those that cut `most` rows evenly; 0 where not even one row does.

    `guess` says how many rows should fit by what has been tried: first one and two rows, then what it said. In the end
    the next larger cut has been seen not to fit.
    """
    if not fits(1):
        return 0
    if most == 1 or not fits(2):
        return 1
    # so many passes are made with micro-batches of ceil(most / passes) rows: others are of no use
    cuts = sorted({math.ceil(most / passes) for passes in range(1, most + 1)})
    best, too_many = 2, most + 1
    while larger := [cut for cut in cuts if best < cut < too_many]:
        count = max((cut for cut in larger if cut <= guess()), default=larger[0])
        if fits(count):
            best = count
        else:
            too_many = count
    return best


def _guess(peaks: dict[int, int], room: int) -> float:
    """Rows that fit, where memory grows evenly from one row to the most that have been tried."""
    most = max(peaks)
    row = (peaks[most] - peaks[1]) / (most - 1)
    return math.inf if row <= 0 else 1 + (room - peaks[1]) // row


def _peak(trainer: Any, rows: Sequence[Row], count: int) -> int:
    """Bytes that training on micro-batches of `count` of the longest rows needs at most."""
    arguments = trainer.args
    arguments.per_device_train_batch_size = arguments.per_device_eval_batch_size = trainer._train_batch_size = count
    batch = [rows[at % len(rows)] for at in range(PARTS * count)]
    trainer.use_rows(batch, [], batch_size=len(batch), seed=0)
    # whatever the step makes of its rows later, these are the longest
    trainer.batches.rows_of = trainer.batches.own_rows
    if arguments.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        return int(torch.cuda.max_memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    trainer.train()
    return _resident_peak()


def _forget(trainer: Any) -> None:
    """Give back what a training took, but for the model."""
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _longest(trainer: Any, params: TrainingParams) -> list[Row]:
    """The training rows, the longest first; sampled responses may be longer than those of the data."""
    room = getattr(params, "room", 0)
    rows = [dict(row) for row in trainer.batches.dataset]
    for row in rows if room else ():
        for name in ("chosen_ids", "rejected_ids"):
            row[name] = (row[name] * room)[: max(room, len(row[name]))]
    return sorted(rows, key=trainer.row_length, reverse=True)


def _room(step: Step, trainer: Any, card_memory: int, ranks: int) -> int:
    """Bytes that one process may use."""
    share = USABLE[step.device.kind]
    if step.device.kind == "cpu":
        return int(share * card_memory)
    free, total = torch.cuda.mem_get_info()
    # what this process has of its own is free to it
    own = torch.cuda.memory_reserved()
    # torch's DDP keeps the gradients a second time, in the buckets that it sends
    trained = sum(each.numel() * each.element_size() for each in trainer.model.parameters() if each.requires_grad)
    return int(share * (free + own - (total - card_memory)) - (trained if ranks > 1 else 0))


def _resident_peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status: no VmHWM")


def run(folder: Path) -> dict[str, Any] | str:
    """What `measure` finds for the step that `folder` describes, or why nothing was found. The process has ended."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith(OF_RANKS)}
    # transformers would spread a process that sees several cards over them
    alone["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    log = folder / "log.txt"
    with open(log, "wb") as stream:
        command = [sys.executable, "-m", "cdpo.train.probe", str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=alone)
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    if code == 0:
        found: dict[str, Any] = read_json(folder / "result.json")
        return found
    said = log.read_text(errors="replace").strip().splitlines()
    return f"exit code {code}: {said[-1] if said else 'it said nothing'}"


def main(folder: Path) -> None:
    from cdpo.engine.process import die_with_parent
    from cdpo.engine.program import load_run

    die_with_parent()
    described = read_json(folder / "step.json")
    asked = read_json(folder / "probe.json")
    step = Step.read(folder)

    def tell(trainer: Any, params: TrainingParams) -> None:
        write_json(folder / "result.json", measure(trainer, step, params, **asked), durable=False)
        raise Measured

    step.measure = tell
    try:
        with memory.recognised():
            load_run(described)(step)
    except Measured:
        return
    except OutOfMemory as error:
        # the model alone, or its optimiser, is too large
        print(error, file=sys.stderr)
        write_json(folder / "result.json", {"micro_batch": 0, "peak": None}, durable=False)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m cdpo.train.probe FOLDER   (with a step.json and a probe.json)")
    main(Path(sys.argv[1]))
