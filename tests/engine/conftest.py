import sys

import pytest
from engine_bench import Bench
from fake_gpus import FakeGpus, load_fake


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
