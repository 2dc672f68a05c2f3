import sys

import pytest
from engine_bench import Bench
from fake_gpus import FakeGpus, load_fake
from ray_room import Room, start_cluster


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two made-up cards, nobody on them, and leases of their own."""
    monkeypatch.setitem(sys.modules, "pynvml", load_fake())
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "gpus.json"))
    monkeypatch.setenv("CDPO_GPU_LEASES", str(tmp_path / "leases"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return FakeGpus(tmp_path / "gpus.json")


@pytest.fixture(scope="module")
def shared_cluster():
    yield from start_cluster(cpus=2, gpus=2)


@pytest.fixture
def own_cluster():
    """A Ray cluster for one test, that may break it."""
    yield from start_cluster(cpus=1)


@pytest.fixture
def room(bench, shared_cluster):
    return Room(bench, shared_cluster)
