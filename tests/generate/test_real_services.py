"""Real servers as services: started, merged or given the adapter, asked, killed in the middle, ended."""

import importlib.util
import signal
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

import backend_checks as checks
import pytest
import torch

from cdpo.config.params import SamplingParams
from cdpo.engine import stop
from cdpo.engine.process import identity, is_alive, send
from cdpo.engine.services.client import Service
from cdpo.generate.backend import Item
from cdpo.generate.endpoint import Endpoint
from cdpo.generate.openai_backend import OpenAIBackend
from cdpo.models import load_tokenizer
from cdpo.step import Device, Step
from cdpo.store import Store
from tests.conftest import ROOT

VLLM = ROOT / ".venv-vllm" / "bin" / "python"
#: for a tiny model on a CPU that others use too
SMALL = ["--max-model-len", "256", "--gpu-memory-utilization", "0.1", "--enforce-eager"]
pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path: Path):
    """A folder with whatever a path may have in it; its services are ended."""
    root = tmp_path / "mit Leer zeichen é@:=,"
    root.mkdir()
    yield root
    assert stop.end_services(Store(root / "store"), 30)


@pytest.fixture
def folder(root: Path) -> Path:
    return checks.build_model(root / "model")


@pytest.fixture
def adapter(folder: Path) -> Path:
    return checks.build_adapter(folder, folder.parent / "adapter")


def service_of(root: Path, server: str, folder: Path, adapter: Path | None) -> Service:
    vllm = server == "vllm"
    if vllm and not VLLM.exists():
        pytest.skip("no .venv-vllm: `make vllm-env`")
    if not vllm and importlib.util.find_spec("fastapi") is None:
        pytest.skip("transformers serve needs pip install 'transformers[serving]'")
    keep = {
        "server": server,
        "python": str(VLLM) if vllm else sys.executable,
        "options": SMALL if vllm else [],
        "processes": 1,
        "api_key": None,
        "gpus": [],
        "job": None,
        "folder": None,
        "host": socket.gethostname(),
        "model": str(folder),
        "build": None,
        "adapter": adapter and str(adapter),
        "label": "tiny",
        "dtype": "auto",
        "ready_seconds": 300.0,
        "restarts": 1,
    }
    told = {"folder": str(root / "store" / "services" / "one"), "keep": keep, "api_key": None}
    work = root / "store" / "work" / "hand"
    work.mkdir(parents=True)
    return Service(Step("GEN", "hand", "tiny", {}, {}, 0, Device(service=told), work))


def backend_of(service: Service, server: str, folder: Path, adapter: Path | None) -> OpenAIBackend:
    endpoint = Endpoint(service.look, concurrency=1 if server == "transformers" else 8, timeout=120, retries=8)
    return OpenAIBackend(endpoint, load_tokenizer(folder, adapter), server=server)


@pytest.mark.parametrize("adapted", [False, True])
def test_vllm(root, folder, adapter, adapted):
    mine = adapter if adapted else None
    service = service_of(root, "vllm", folder, mine)
    checks.check_greedy(lambda *_: backend_of(service, "vllm", folder, mine), folder, mine)


def test_transformers_with_its_adapter_merged_is_killed_and_goes_on(root, folder, adapter):
    service = service_of(root, "transformers", folder, adapter)
    sampling = SamplingParams(do_sample=False, max_new_tokens=16)
    asked = checks.prompts(12)
    said = {}
    with closing(backend_of(service, "transformers", folder, adapter)) as backend:
        for at, sampled in backend.generate([Item(each, 0) for each in asked], sampling, end_ids=checks.ENDS):
            said[at] = sampled.text
            if len(said) == 4:
                (pid,) = [each["pid"] for each in _running(root)]
                server = identity(pid)
                send(server, signal.SIGKILL)
                while is_alive(server):
                    time.sleep(0.01)
    model, tokenizer = checks.load(folder, adapter), load_tokenizer(folder, adapter)
    for at, prompt in enumerate(asked):
        given = torch.tensor([prompt])
        made = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=checks.ENDS,
            pad_token_id=checks.PAD,
        )[0, len(prompt) :]
        assert said[at] == tokenizer.decode(made, skip_special_tokens=True)
    assert [each["restarts"] for each in _running(root)] == [1]


def _running(root: Path):
    from cdpo.engine.services.running import services

    return services(Store(root / "store"))
