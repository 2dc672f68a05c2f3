"""Which micro-batch a training step takes: the one of devices.yaml, a measured one, or a default."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cdpo import measured
from cdpo.config.params import TrainingParams
from cdpo.data.prepared import read_split, write_split
from cdpo.errors import StepError
from cdpo.files import read_json, write_json
from cdpo.measured import Measurement
from cdpo.memory import ADVICE
from cdpo.step import Device, Step
from cdpo.store import Store
from cdpo.train import probe
from cdpo.train.loss_types import COUPLED
from cdpo.train.rows import Splits, context
from cdpo.weights import stored_dtype

#: A step is long from so many seconds on; a probe takes some tens of them, once for a card, a model and a length.
LONG = 600.0
#: operations a second of one CPU thread, and of a GPU, in training: a rough count that only tells long from short
SPEED = {"cpu": 3e10, "cuda": 5e13}
#: operations for each weight and token, forward and backward
OPERATIONS = 6
#: so many of the longest rows are given to a probe
ROWS = 64


def settle_micro_batch(step: Step, params: TrainingParams, splits: Splits) -> None:
    """Where devices.yaml names no micro-batch, set the step's to what was measured here, or is, where the step is long.

    To be called alike on all ranks, before the model is read. Raises StepError where not even one row fits.
    """
    device = step.device
    described = step.work / "step.json"
    planned = read_json(described).get("planned") if described.exists() else None
    if device.micro_batch is not None or step.measure is not None or planned is None:
        return
    if device.distributed_type in ("DEEPSPEED", "FSDP"):
        return  # one process alone cannot tell what a part of a model needs
    if COUPLED & set(getattr(params, "loss_types", ())):
        return  # all rows go at once, or not at all
    total = _smallest(step)
    if total is None:
        return
    rows = _of_first_rank(step, lambda: _measured(step, params, splits, planned, total))
    if rows == 0:
        raise StepError(
            f"not even one row of {_length(step, params, splits)} tokens fits into the memory of {_card(step)}, as was "
            f"measured. {ADVICE}. `micro_batch: 1` for {step.pipeline} in devices.yaml tries all the same"
        )
    device.micro_batch = rows


def _smallest(step: Step) -> int | None:
    """Bytes of the smallest card of all ranks, or of their share of a machine's memory; None where nobody knows."""
    own = [_memory(step.device)]
    if step.device.processes > 1:
        from accelerate.utils import gather_object

        own = gather_object(own)
    known = [each for each in own if each is not None]
    return min(known) if len(known) == len(own) else None


def _of_first_rank(step: Step, value: Callable[[], int | None]) -> int | None:
    """What the first rank finds; the others wait for it."""
    found: list[int | None] = [value() if step.rank == 0 else None]
    if step.device.processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(found)
    return found[0]


def _measured(step: Step, params: TrainingParams, splits: Splits, planned: dict[str, Any], total: int) -> int | None:
    """The micro-batch that was or is measured to fit into `total` bytes; 0: none does; None: nobody knows, and the
    step is short."""
    device, store = step.device, Store(step.work.parent.parent)
    most = measured.most_rows(device, params.batch_size)
    setup = measured.setup_of(step.pipeline, params, planned, lambda key: _inputs(store, key), device.processes)
    length = _length(step, params, splits)
    found = measured.look_up(store, _card(step), total, setup, length, most)
    if found is None and _seconds(step, params, splits) >= LONG:
        found = _probe(step, params, splits, Measurement(_card(step), total, setup, length, 0, most, None))
        if found is not None:
            measured.remember(store, found)
    if found is None:
        return None
    rows = found.rows(total, most)
    assert rows is not None
    if device.halved and read_json(step.work / "step.json")["out_of_memory"]["rows"] == rows > 1:
        # what seemed to fit did not: the next step need not find that out again
        measured.remember(store, Measurement(**{**asdict(found), "micro_batch": rows // 2}))
    return rows


def _probe(step: Step, params: TrainingParams, splits: Splits, asked: Measurement) -> Measurement | None:
    """`asked` with what a probe found; None where it failed, which the step says."""
    step.note(f"measuring how many rows of {asked.length} tokens fit into {asked.memory / 1e9:.1f} GB ({asked.card})")
    folder = step.work / "probe"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    _write_longest(step, splits, folder / "data")
    alone = {"processes": 1, "distributed_type": "NO", "micro_batch": 1, "halved": False, "watchdog": None}
    short = {"batch_size": probe.PARTS, "max_steps": probe.STEPS, "limit": None, "max_dropped": 1.0}
    never = {"eval_steps": None, "early_stopping_patience": None, "load_best_model_at_end": False}
    never["stretch_epochs"] = False
    described = read_json(step.work / "step.json")
    described["params"] |= short | {name: value for name, value in never.items() if name in described["params"]}
    described["inputs"] = {**described["inputs"], "data": str(folder / "data")}
    described["device"] = {**asdict(step.device), **alone}
    write_json(folder / "step.json", described, durable=False)
    write_json(
        folder / "probe.json",
        {"most": asked.most, "card_memory": asked.memory, "ranks": step.device.processes},
        durable=False,
    )
    found = probe.run(folder)
    if isinstance(found, str):
        step.note(f"it could not be measured, and the default micro-batch is taken ({found}); see {folder}/log.txt")
        return None
    shutil.rmtree(folder)
    whole = Measurement(**{**asdict(asked), **found})
    if whole.peak is not None:
        step.note(
            f"{whole.micro_batch} rows at once need {whole.peak / 1e9:.1f} GB; remembered for steps like this one"
        )
    return whole


def _write_longest(step: Step, splits: Splits, folder: Path) -> None:
    """The longest rows of `train` as a dataset of its own, and one row for each of the splits that are not trained."""

    def length(row: dict[str, Any]) -> int:
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    for name in ("train", "tune", "eval"):
        longest = sorted(getattr(splits, name), key=length, reverse=True)[: ROWS if name == "train" else 1]
        wanted = {row["prompt_id"] for row in longest}
        write_split(folder, name, [row for row in read_split(step.input("data"), name) if row["prompt_id"] in wanted])


def _seconds(step: Step, params: TrainingParams, splits: Splits) -> float:
    """About how long the training will take."""
    rows = splits.train
    tokens = sum(len(row["prompt_ids"]) + (len(row["chosen_ids"]) + len(row["rejected_ids"])) / 2 for row in rows)
    seen = params.max_steps * params.batch_size if params.max_steps else params.num_train_epochs * len(rows)
    sequences = 1 if step.pipeline == "SFT" else 2
    threads = step.device.threads if step.device.kind == "cpu" else 1
    speed = SPEED[step.device.kind] * threads * step.device.processes
    return OPERATIONS * _weights(step.input("model")) * seen * tokens / len(rows) * sequences / speed


def _weights(folder: Path) -> float:
    """About how many weights a model has, by the size of its files."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return size / (4 if stored_dtype(folder) == "fp32" else 2)


def _length(step: Step, params: TrainingParams, splits: Splits) -> int:
    """Tokens of the longest row, as `cdpo prep` counts them."""
    return int(min(splits.report["train"]["longest"], context(step.input("model"), params.max_length)))


def _card(step: Step) -> str:
    if step.device.kind == "cpu":
        return "cpu"
    return step.device.card or torch.cuda.get_device_name()


def _memory(device: Device) -> int | None:
    """Bytes of the smallest card that this process sees, or its share of the machine's memory."""
    if device.kind == "cpu":
        return device.memory
    return min(int(torch.cuda.get_device_properties(at).total_memory) for at in range(torch.cuda.device_count()))


def _inputs(store: Store, key: str) -> dict[str, Any]:
    """The inputs of a finished step."""
    folder = store.find(key)
    if folder is None:
        raise StepError(f"its input {key} was removed from {store.root}; `cdpo execute` makes both")
    inputs: dict[str, Any] = store.manifest(folder)["inputs"]
    return inputs
