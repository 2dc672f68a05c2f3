"""`python -m cdpo.engine.ranks.rank WORK`: one of the processes of a step, started by torchrun or accelerate.

Before anything heavy is imported it binds itself to its step: it dies with the launcher, and it holds the step's
`alive` lock, shared, so that the step is not free while it lives.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from cdpo import memory, stopping
from cdpo.engine import stall
from cdpo.engine.process import die_with_parent
from cdpo.engine.program import load_run
from cdpo.engine.ranks.launchers import FIRST, RANK_FAILURE, RESULT
from cdpo.engine.ranks.node import LAUNCHER
from cdpo.errors import CdpoError, OutOfMemory, StepError
from cdpo.files import read_json, write_json
from cdpo.step import Device, Step
from cdpo.store import Store, locks


def main(work: Path) -> int:
    launcher = os.environ.get(LAUNCHER)
    die_with_parent()
    stall.show_stacks_on_signal()
    stopping.obey(insistent=False)
    store = Store(work.parent.parent)
    # never given back: the lock ends with this process
    alive = locks.acquire(store.alive_path(work.name), shared=True, wait=True)
    assert alive is not None
    if launcher is not None and os.getppid() != int(launcher):
        # the launcher died before the kernel knew that we die with it
        print("the launcher of this rank is gone", file=sys.stderr)
        return 1
    rank = int(os.environ.get("RANK", "0"))
    try:
        step = Step.read(work, rank)
        check(step.device)
        with memory.recognised():
            summary = dict(load_run(read_json(work / "step.json"))(step) or {})
        if rank == 0:
            write_json(work / RESULT, summary)
        return 0
    except stopping.Stopped:
        return 0
    except BaseException as error:
        if stopping.asked():
            # it lost the others, which stopped before it
            traceback.print_exc()
            return 0
        mendable = isinstance(error, CdpoError)
        reason = str(error) if mendable else "".join(traceback.format_exception_only(error)).strip()
        _report(work, {"rank": rank, "reason": reason, "mendable": mendable, "memory": _memory(error)})
        if not mendable or os.environ.get("CDPO_DEBUG") == "1":
            traceback.print_exc()
        return 1


def check(device: Device) -> None:
    """Raise StepError unless this process is one of as many, and of the kind of parallelism, as the step asked for.

    Launchers fall back silently: `accelerate launch --cpu` starts one process, and FSDP settings on a CPU run plain
    data parallelism.
    """
    if device.distributed_type == "FSDP" and device.kind == "cpu":
        raise StepError(
            "FSDP needs GPUs: on CPUs accelerate would run plain data parallelism. Leave accelerate_config out of "
            "devices.yaml, or take zero2.yaml"
        )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != device.processes:
        raise StepError(
            f"devices.yaml asks for {device.processes} processes and the launcher started {world}; "
            "correct `processes` or the accelerate_config, which must agree"
        )
    if device.kind == "cuda":
        _check_gpus()
    state = _process_state(device)
    kind = state.distributed_type.value
    # accelerate itself changes MULTI_GPU to FSDP only when an Accelerator is made, by the same rule
    if kind == "MULTI_GPU" and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        kind = "FSDP"
    if kind != device.distributed_type or state.num_processes != device.processes:
        raise StepError(
            f"devices.yaml asks for {device.distributed_type} on {device.processes} processes, and accelerate found "
            f"{kind} on {state.num_processes}; correct `distributed_type` or the accelerate_config"
        )


def _check_gpus() -> None:
    """Raise StepError unless each rank of this node has a GPU: accelerate would let several share one."""
    import torch

    here, ranks = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if here < ranks:
        raise StepError(
            f"{here} GPUs can be seen on this node, for {ranks} processes: lower `processes` in devices.yaml, or have "
            "the batch system give each node as many"
        )


def _process_state(device: Device) -> Any:
    """accelerate's idea of this process and its like, which later ones are made after."""
    if device.kind != "cpu":
        from accelerate import PartialState

        return PartialState()
    if device.distributed_type == "DEEPSPEED":
        # told that this is a CPU, accelerate would forget DeepSpeed: it is given the backend and the device instead
        os.environ["ACCELERATE_TORCH_DEVICE"] = os.environ["DS_ACCELERATOR"] = "cpu"
        from accelerate import PartialState

        return PartialState(backend="gloo")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    from accelerate import PartialState

    return PartialState(cpu=True)


def _memory(error: BaseException) -> dict[str, Any] | None:
    """What OutOfMemory is made of; None for any other error."""
    return {"rows": error.rows, "said": error.said} if isinstance(error, OutOfMemory) else None


def _report(work: Path, failure: dict[str, Any]) -> None:
    """The first rank that fails says why; the others fail because it did."""
    try:
        os.close(os.open(work / FIRST, os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        return
    write_json(work / RANK_FAILURE, failure, durable=False)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    # What is left to do is in the files. Threads of gloo and DeepSpeed, which nobody joins, may abort a process that is
    # taken down in order, and a step that is done would have failed.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
