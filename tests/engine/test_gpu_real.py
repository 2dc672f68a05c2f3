"""Leases on a real GPU, by one command: `make gpu-check` (`pytest -s` with this file shows the times as well).

Needs an NVIDIA GPU that nobody uses, and torch's CUDA build; elsewhere it is skipped and says why. The same rules are
tested with a made-up driver in test_nvml.py and test_engine_gpus.py.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from engine_bench import HERE, of_kind, wait_for
from on_gpu import hold

from cdpo.engine.gpus import leases, nvml
from cdpo.engine.gpus.foreign import foreign, inspect
from cdpo.engine.gpus.slots import Slots
from cdpo.engine.watch import proc
from cdpo.errors import CdpoError

pytestmark = pytest.mark.gpu

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

#: seconds in which the driver must have taken back the memory of a killed process
BACK = 20.0


def _obstacle():
    """Why there is nothing to test here; None where there is."""
    try:
        found = nvml.list_gpus()
    except CdpoError as error:
        return str(error)
    if not found:
        return "no NVIDIA GPU here"
    code = "import torch; torch.zeros(1, device='cuda')"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode != 0:
        return "torch cannot compute on the GPU here: its CUDA build is needed"
    free, said = inspect(found[0])
    return None if free else f"GPU {found[0].index} is in use: {said}"


@pytest.fixture(scope="module")
def gpu():
    """The first card of this machine."""
    obstacle = _obstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    card = nvml.list_gpus()[0]
    print(f"\n{card.name}: {inspect(card)[1]}")
    return card


@pytest.fixture
def on_gpu(bench, gpu, monkeypatch):
    """Executions whose steps hold memory of the card; the driver is the real one, and the leases are the machine's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu.uuid)
    bench.paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    bench.leases = leases.lease_folder()

    def execute():
        return bench.execute(devices={"gpus": "auto"}, modules={"TRIVIAL": str(HERE / "on_gpu.py")})

    yield execute
    assert wait_for(lambda: foreign(gpu) is None, BACK)


def back(gpu):
    """Seconds until the card is free again."""
    began = time.monotonic()
    assert wait_for(lambda: foreign(gpu) is None, BACK), foreign(gpu)
    return time.monotonic() - began


def test_the_driver_and_nvidia_smi_agree(gpu):
    wanted = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
    rows = [line.split(", ") for line in subprocess.check_output(wanted, text=True).splitlines()]
    uuid, name, total = next(row for row in rows if row[0] == gpu.uuid or gpu.name.startswith(row[1]))
    assert gpu.name.startswith(name)
    if uuid == gpu.uuid:
        assert nvml.usage(gpu).total // 2**20 == pytest.approx(int(total), rel=0.02)


def test_a_foreign_process_keeps_the_card_until_it_is_killed(gpu, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpu.uuid)
    other = hold(2)
    try:
        found = foreign(gpu)
        print(f"foreign process {other.pid}: {found}")
        # a container may hide who it is, and then the memory tells
        assert f"process {other.pid} (" in found.text or found.fading
        assert Slots([gpu], 1).take(1) is None
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    print(f"memory back {back(gpu):.2f} s after kill -9")
    pool = Slots([gpu], 1)
    place = pool.take(1)
    assert place is not None
    pool.give(place)


def test_two_executions_share_one_card(gpu, on_gpu, bench):
    """Each step takes more than half of it: two at once would not fit."""
    gib = round(0.6 * nvml.usage(gpu).total / 2**30, 1)
    shape = {name: [] for name in "abcd"}
    bench.plan(shape, **{name: {"gib": gib} for name in shape})
    both = [on_gpu(), on_gpu()]
    ends = [bench.finish(process, 300) for process in both]
    assert [code for code, _ in ends] == [0, 0], [of_kind(events, "step_failed") for _, events in ends]
    assert set(bench.told().values()) == {1}


@pytest.mark.parametrize("daemon", [False, True])
def test_after_kill_9_the_card_is_given_on_when_its_memory_is_free(gpu, on_gpu, bench, daemon):
    gib = round(0.3 * nvml.usage(gpu).total / 2**30, 1)
    plan = bench.plan({"a": [], "b": []}, a={"gib": gib, "gate": "/nowhere", "daemon": daemon}, b={"gib": 2 * gib})
    key = next(iter(plan.steps))
    process = on_gpu()
    assert wait_for(lambda: bench.told()["begin", "a"] == 1, 120)
    worker = proc(bench.store.work(key))["pid"]
    assert leases.holder(gpu)["pid"] == worker
    print(inspect(gpu)[1])
    os.kill(worker, signal.SIGKILL)
    began = time.monotonic()
    code, events = bench.finish(process, 120)
    (started,) = [event["time"] for event in of_kind(events, "step_started") if event["name"] == "b"]
    (failed,) = of_kind(events, "step_failed")
    print(f"step b started {started - failed['time']:.2f} s after a's end was seen; all over in "
          f"{time.monotonic() - began:.1f} s")  # fmt: skip
    assert code == 1
    assert "SIGKILL" in failed["reason"]
    assert bench.told()["end", "b"] == 1
    assert bench.none_left(1)


def test_an_execution_waits_for_a_foreign_process_and_then_goes_on(gpu, on_gpu, bench):
    bench.plan({"a": []}, a={"gib": 1})
    other = hold(2, env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu.uuid})
    process = on_gpu()
    try:
        assert bench.happened("note", seconds=40)
        assert not bench.told()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    code, events = bench.finish(process, 120)
    assert code == 0
    print(of_kind(events, "note")[0]["text"])
