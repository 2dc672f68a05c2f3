"""GPUs of the made-up driver in fakes/pynvml.py, for tests of this process and for executions that it starts."""

import importlib.util
import json
import os
from pathlib import Path

FAKE = Path(__file__).parent / "fakes" / "pynvml.py"
GIB = 2**30


def load_fake():
    spec = importlib.util.spec_from_file_location("pynvml", FAKE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class FakeGpus:
    """A machine whose cards are those of the last `show`."""

    def __init__(self, path):
        self.path = path
        self.show(A, B)

    def show(self, *cards, **more):
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps({"gpus": cards, **more}))
        os.replace(beside, self.path)


def card(uuid, name="NVIDIA A100-SXM4-80GB", **more):
    return {"uuid": uuid, "name": name, "memory_total": 80 * GIB, **more}


def computing(*pids, memory=3 * GIB):
    """A card's processes, and the memory that they hold."""
    return {"processes": [{"pid": pid, "memory": memory} for pid in pids], "memory_used": memory * len(pids)}


A, B = card("GPU-aaaa-1"), card("GPU-aabb-2")
