"""Two launchers with one rank each, as srun starts them on two nodes, here both on this machine: one training."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sharding import describe

from cdpo.engine.ranks import launchers, node
from cdpo.errors import StepError
from cdpo.step import Device
from cdpo.store import Store, locks

PARAMS = {"learning_rate": 1e-2, "batch_size": 16, "num_train_epochs": 1.0}


def launch(work: Path, number: int, port: int, **more: str) -> "subprocess.Popen[bytes]":
    """What srun starts on node `number` of two."""
    slurm = {"SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": str(number), "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **slurm, node.PORT: str(port)}
    with open(work / f"node{number}.log", "wb") as log:
        command = [sys.executable, "-m", "cdpo.engine.ranks.node", str(work)]
        return subprocess.Popen(command, env={**environment, **more}, stdout=log, stderr=log)


def two_nodes(world, folder: Path, launcher: str | None = None, **params) -> Path:
    """A step of two nodes, ready to be launched."""
    wanted = {"processes": 2, "micro_batch": 3, "accelerate_config": launcher}
    work = describe(world, folder, "SFT", {**PARAMS, **params}, wanted)
    described = json.loads((work / "step.json").read_text())
    described["device"]["nodes"] = 2
    (work / "step.json").write_text(json.dumps(described))
    (work / "out").mkdir()
    assert Store(work.parent.parent).lock(work.name) is not None  # a worker's, which this test stands for
    return work


def ranks_of(work: Path) -> list[int]:
    """Pids of the ranks of a step; its launchers have their command line too, and launch."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                of_rank = words[-3:-1] == ["cdpo.engine.ranks.rank", str(work)]
                if of_rank and words[1:3] != ["-m", "torch.distributed.run"]:
                    found.append(int(entry.name))
    return found


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "ddp_multinode", "zero2"])
def test_two_launchers_train_what_one_process_trains(world, tmp_path, launcher: str) -> None:
    work = two_nodes(world, tmp_path, None if launcher == "torchrun" else launcher)
    port = launchers._free_port()
    started = [launch(work, number, port) for number in (0, 1)]
    assert [each.wait(300) for each in started] == [0, 0], (work / "node0.log").read_text()[-4000:]
    assert "3/3 steps" in (work / "node0.log").read_text()
    _, alone = world.run("SFT", PARAMS, device={"micro_batch": 16})
    together = json.loads((work / launchers.RESULT).read_text())
    assert together["processes"] == 2
    for split in ("eval", "tune"):
        assert together["after"][split]["loss"] == pytest.approx(alone["after"][split]["loss"], rel=1e-3)


@pytest.mark.slow
def test_a_launcher_that_dies_takes_its_rank_along_and_ranks_hold_the_alive_lock(world, tmp_path) -> None:
    work = two_nodes(world, tmp_path)
    alive = Store(work.parent.parent).alive_path(work.name)
    port = launchers._free_port()
    first, second = (launch(work, number, port) for number in (0, 1))
    try:
        assert wait_for(lambda: len(ranks_of(work)) == 2, 60)
        second.kill()
        assert wait_for(lambda: len(ranks_of(work)) == 1, 5)
        assert wait_for(lambda: locks.is_held(alive), 5)
        first.kill()
        assert wait_for(lambda: not ranks_of(work) and not locks.is_held(alive), 5)
    finally:
        for each in (first, second):
            each.kill()
            each.wait()


@pytest.mark.slow
def test_nodes_that_are_told_to_stop_leave_a_checkpoint_and_go_on_from_it(world, tmp_path) -> None:
    work = two_nodes(world, tmp_path, max_steps=60)
    port = launchers._free_port()
    started = [launch(work, number, port) for number in (0, 1)]
    try:
        assert wait_for(lambda: (work / "metrics.jsonl").exists(), 120)
        for each in started:  # srun passes it on to every node
            each.send_signal(signal.SIGTERM)
        assert [each.wait(120) for each in started] == [0, 0]
        assert not (work / launchers.RESULT).exists()
        assert len(list((work / "ckpt").glob("checkpoint-*/complete.json"))) == 1
        port = launchers._free_port()
        started = [launch(work, number, port) for number in (0, 1)]
        assert [each.wait(300) for each in started] == [0, 0]
        assert json.loads((work / launchers.RESULT).read_text())["resumed_from"]
    finally:
        for each in started:
            each.kill()
            each.wait()


def test_nodes_that_slurm_did_not_start_are_refused(monkeypatch, tmp_path) -> None:
    device = Device(processes=2, nodes=2)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(StepError, match="started by SLURM only"):
        launchers.run(tmp_path, device)
    with pytest.raises(StepError, match="SLURM_STEP_NUM_NODES is not set"):
        node.this_node(device)
    for name, value in {"SLURM_STEP_NUM_NODES": "3", "SLURM_PROCID": "0", "SLURM_LAUNCH_NODE_IPADDR": "::1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(node.PORT, "1")
    with pytest.raises(StepError, match="asks for 2 nodes, and SLURM gave this step 3"):
        node.this_node(device)
