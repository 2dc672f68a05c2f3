"""What `cdpo doctor` says of GPUs: free memory, leases, and processes that no lease covers."""

import os
import subprocess
import sys
import time

import pytest
from engine_bench import wait_for
from fake_gpus import GIB, A, B, card, computing

from cdpo.commands import doctor
from cdpo.engine.gpus import leases
from cdpo.engine.gpus.nvml import list_gpus
from cdpo.engine.process import descends, identity


@pytest.fixture
def said(machine, capsys, monkeypatch):
    """Lines of the doctor about hardware, and what is to be mended."""
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0")

    def lines():
        wrong = doctor._hardware()
        return capsys.readouterr().out.splitlines(), wrong

    return lines


def test_free_cards(said, machine):
    machine.show(A, card("GPU-aabb-2", memory_used=GIB // 2))
    assert said() == (
        [
            "ok       GPU 0: NVIDIA A100-SXM4-80GB (GPU-aaaa-1): 80.0 GiB of 80.0 GiB free; not leased",
            "ok       GPU 1: NVIDIA A100-SXM4-80GB (GPU-aabb-2): 79.5 GiB of 80.0 GiB free; not leased",
        ],
        [],
    )


def test_a_foreign_process_is_named(said, machine):
    machine.show(card("GPU-aaaa-1", **computing(os.getpid())))
    ((line,), _) = said()
    assert line.startswith("in use   GPU 0")
    assert f"77.0 GiB of 80.0 GiB free; process {os.getpid()} (" in line
    assert line.endswith("holds 3.0 GiB")


def test_a_lease_and_who_uses_the_card_beside_it(said, machine):
    # a rank is a child of the worker's child, in a session of its own
    code = "import subprocess as s; print(s.Popen(['sleep', '60'], start_new_session=True).pid, flush=True); input()"
    worker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rank = int(worker.stdout.readline())
    other = subprocess.Popen(["sleep", "60"])
    held = leases.lease(list_gpus()[0])
    try:
        who = {"user": "anna", "step": "DPO/x-0123", "store": "/s", "since": time.time()}
        leases.sign(held, {**identity(worker.pid), **who})
        machine.show(card("GPU-aaaa-1", **computing(rank)), B)
        line = said()[0][0]
        assert line.startswith("in use   GPU 0")
        assert "by anna: process" in line
        assert line.endswith("makes DPO/x-0123 in /s")
        machine.show(card("GPU-aaaa-1", **computing(rank, other.pid)))
        line = said()[0][0]
        assert f"; no lease covers process {other.pid} (sleep, " in line
        assert f"process {rank} " not in line
    finally:
        os.close(held)
        os.kill(rank, 9)
        other.kill()
        other.wait()
        worker.communicate("\n")
    assert wait_for(lambda: not descends(rank, worker.pid))


def test_a_running_step_is_found_by_its_lease(said, bench):
    bench.plan({"a": []}, a={"gate": str(bench.folder / "gate")})
    bench.execute(devices={"gpus": "auto"})
    assert wait_for(lambda: bench.told()["begin", "a"] == 1)
    (worker,) = bench.workers()
    lines, _ = said()
    assert f"process {worker} makes TRIVIAL/a-" in lines[0]
    assert lines[1].endswith("not leased")


def test_no_card_and_a_broken_driver(said, machine, monkeypatch):
    machine.show(fails=9)
    lines, wrong = said()
    assert lines[0].startswith("wrong    the GPUs cannot be listed: the NVIDIA driver says 'Driver Not Loaded'")
    assert len(wrong) == 1
    monkeypatch.delenv("FAKE_NVML")
    assert said() == (["ok       no NVIDIA GPU: steps run on the CPU"], [])
