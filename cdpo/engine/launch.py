"""Starts one worker: its step.json, its environment, its log, its locks."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cdpo.engine import trees
from cdpo.engine.gpus.slots import Place
from cdpo.engine.local.running import Running
from cdpo.engine.parts import earlier
from cdpo.engine.process import identity
from cdpo.engine.worker import LAUNCH
from cdpo.files import write_json
from cdpo.pipeline import pipelines
from cdpo.step import Device
from cdpo.store import Store
from cdpo.store.locks import Lock

if TYPE_CHECKING:
    from cdpo.plan.graph import PlannedStep

#: what an earlier attempt left and the next must not be taken for; logs and checkpoints stay
STALE = ("proc.json", "failure.json", "events.jsonl", "metrics.jsonl")


def local_inputs(step: "PlannedStep", work: Path, parents: Mapping[str, Path]) -> dict[str, str | list[str]]:
    """What stands behind each role, as local paths; `parents` are the folders of finished steps by key."""
    found: dict[str, str | list[str]] = {}
    for role, planned in step.inputs.items():
        if "step" in planned:
            found[role] = str(parents[planned["step"]] / "out")
        elif "files" in planned:
            found[role] = [os.path.abspath(path) for path in planned["files"]]
        elif "folder" in planned:
            found[role] = os.path.abspath(planned["folder"])
        elif "plugin" in planned:
            found[role] = planned["plugin"]
        else:
            # "built": the worker makes it
            found[role] = str(work / "inputs" / role)
    if step.shards:
        found["shards"] = [str(parents[key] / "out") for key in step.shards]
    return found


def describe(
    store: Store,
    step: "PlannedStep",
    inputs: Mapping[str, str | list[str]],
    module: str | None,
    device: Device,
) -> Path:
    """Write the step.json of a step whose lock this process holds; returns its work folder."""
    work = store.work(step.key)
    work.mkdir(parents=True, exist_ok=True)
    for name in STALE:
        (work / name).unlink(missing_ok=True)
    described: dict[str, Any] = {
        **{name: getattr(step, name) for name in ("pipeline", "key", "name", "version", "params", "seed", "shard")},
        "inputs": dict(inputs) | ({"earlier": before} if (before := earlier(store, step)) else {}),
        "planned": step.inputs,
        "device": asdict(device),
    }
    if module is not None:
        described["module"] = module
    if step.trusted:
        described["trusted"] = step.trusted
    write_json(work / "step.json", described, durable=False)
    return work


def worker_command(work: Path) -> list[str]:
    return [sys.executable, "-m", "cdpo.engine.worker", str(work)]


def start(
    store: Store,
    step: "PlannedStep",
    inputs: Mapping[str, str | list[str]],
    module: str | None,
    device: Device,
    place: Place,
    lock: Lock,
) -> Running:
    """Start the worker of `step`, whose lock this process holds; it and the leases of `place` pass to the worker."""
    work = describe(store, step, inputs, module, device)
    attempt, log, stream = open_log(work)
    mark = trees.new_mark(store, step.key)
    launch = {
        "lock": lock.described(),
        "leases": place.descriptors,
        "mark": mark,
        "attempt": attempt,
        "supervisor": identity(),
        "place": place.label,
        "gpus": [{"uuid": gpu.uuid, "name": gpu.name} for gpu in place.gpus],
    }
    with stream:
        worker = subprocess.Popen(
            worker_command(work),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[*lock.descriptors, *place.descriptors],
            env={
                **os.environ,
                **environment(device, step.pipeline),
                **place.environment(),
                trees.MARK: mark,
                LAUNCH: json.dumps(launch),
            },
        )
    # it alone holds its step and its GPUs from now on
    lock.hand_over(worker.pid)
    place.hand_over()
    return Running(work, worker, log, place, attempt, trees.Tree(mark))


def environment(device: Device, pipeline: str) -> dict[str, str]:
    """What a worker's environment has beside the one that it is started from."""
    threads = str(device.threads)
    known = pipelines().get(pipeline)
    # inputs are local folders: a step that reaches for the network, and is not made for that, has a mistake in it
    offline = {} if known is not None and known.online else {"HF_HUB_OFFLINE": "1"}
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        # DeepSpeed, where it is installed, looks for itself otherwise, and writes what it found to stdout
        "DS_ACCELERATOR": device.kind,
        **offline,
        # sets of strings keep their order from one attempt to the next
        "PYTHONHASHSEED": "0",
        # a file of the user's working directory must not stand in for a module
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }


def open_log(work: Path) -> tuple[int, Path, IO[bytes]]:
    """The log of the next attempt at a step: its number, its path, and the open file."""
    attempt = 1
    while True:
        log = work / f"attempt-{attempt}.log"
        try:
            return attempt, log, open(log, "xb")
        except FileExistsError:
            attempt += 1
