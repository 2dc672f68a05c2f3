"""How long a killed training step takes to its first new optimiser step, beside a fresh start of the same worker.

    python benchmarks/resume.py [ROUNDS]

A worker makes a step of the playground until it has written a checkpoint in the middle of its training, and is killed;
then it is started again. Times are from the start of the process to the end of its first optimiser step: imports, the
model, the rows and, only where there is no attempt before it, the scores before training and the reference's
log-probabilities. What a checkpoint costs is told beside it.
"""

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _machine import print_machine

from cdpo.data.playground import make
from cdpo.data.prepared import write_split
from cdpo.data.tiny import build_tiny
from cdpo.files import write_json
from cdpo.step import Device
from cdpo.store import Store

#: what is trained on: rows of `train`, `tune` and `eval`
ROWS = (800, 100, 100)
#: a model of 40 million parameters
LARGER = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8}
LARGER |= {"num_key_value_heads": 8, "head_dim": 64}
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "SFT, tiny model": ("SFT", {}, {}),
    "DPO, tiny model": ("DPO", {"beta": 0.1}, {}),
    "SFT, larger model": ("SFT", {}, LARGER),
    "DPO, larger model": ("DPO", {"beta": 0.1}, LARGER),
}


class Bench:
    """One step in a store of its own; `started` is the clock at its worker's start."""

    def __init__(self, folder: Path, data: Path, model: Path, pipeline: str, params: dict[str, Any]) -> None:
        self.key = hashlib.sha256(str(folder).encode()).hexdigest()
        self.work = Store(folder).work(self.key)
        self.work.mkdir(parents=True)
        inputs = {"data": str(data), "model": str(model)}
        device = Device(micro_batch=8, checkpoint_seconds=0.0)
        usual = {"learning_rate": 1e-3, "batch_size": 8, "max_steps": 100}
        write_json(
            self.work / "step.json",
            {
                "pipeline": pipeline,
                "key": self.key,
                "name": "benchmark",
                "version": 1,
                "seed": 0,
                "params": {**usual, **params},
                "inputs": inputs,
                "planned": {role: {"folder": path} for role, path in inputs.items()},
                "device": asdict(device),
            },
        )

    def start(self) -> None:
        (self.work / "metrics.jsonl").unlink(missing_ok=True)
        settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.started = time.monotonic()
        with open(self.work / "log.txt", "wb") as log:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "cdpo.engine.worker", self.work],
                stdout=log,
                stderr=log,
                env={**os.environ, **settings},
            )

    def seconds_to_step(self, beyond: int) -> tuple[float, float]:
        """Wait for the first optimiser step after `beyond`: how long it took, and CPU seconds."""
        while self.last_step() <= beyond:
            if self.worker.poll() is not None:
                sys.exit((self.work / "log.txt").read_text())
            time.sleep(0.005)
        wall = time.monotonic() - self.started
        # user and system time, in ticks, behind the name in brackets
        fields = Path(f"/proc/{self.worker.pid}/stat").read_text().rpartition(")")[2].split()
        return wall, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def last_step(self) -> int:
        try:
            lines = (self.work / "metrics.jsonl").read_text().splitlines()
            return int(json.loads(lines[-1])["step"]) if lines else 0
        except (FileNotFoundError, ValueError):
            return 0

    def kill(self) -> int:
        """Kill the worker once it has written a checkpoint; the optimiser step that it was written after."""
        while "checkpoint of optimiser step" not in (self.work / "log.txt").read_text():
            time.sleep(0.005)
        self.worker.kill()
        self.worker.wait()
        whole = self.work.glob("ckpt/checkpoint-*/complete.json")
        return max(int(path.parent.name.rpartition("-")[2]) for path in whole)


def write_model(folder: Path, shape: dict[str, int]) -> None:
    """The playground's model, or one of another shape with its tokenizer."""
    build_tiny({"kind": "tiny", "seed": 0}, folder)
    if shape:
        from transformers import AutoConfig, AutoModelForCausalLM, set_seed

        set_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **shape)).save_pretrained(folder)


Seconds = tuple[float, float]


def measure(
    folder: Path, data: Path, model: Path, pipeline: str, params: dict[str, Any]
) -> tuple[Seconds, Seconds, str]:
    """Seconds of a fresh start, of a resumed one, and what the log says of its checkpoints."""
    bench = Bench(folder, data, model, pipeline, params)
    bench.start()
    fresh = bench.seconds_to_step(0)
    saved = bench.kill()
    log = (bench.work / "log.txt").read_text()
    bench.start()
    resumed = bench.seconds_to_step(saved)
    bench.kill()
    assert f"goes on from optimiser step {saved} " in (bench.work / "log.txt").read_text()
    return fresh, resumed, re.findall(r"checkpoint of optimiser step \d+: (.*)", log)[0]


def main(rounds: int) -> None:
    print_machine()
    print(f"\nmedians of {rounds} rounds; seconds to the first optimiser step, then CPU seconds")
    print(f"{'':<20}" + f"{'fresh':>8}{'resumed':>9}{'ratio':>7}  {'[least, most]':<15}" * 2 + "checkpoint")
    with tempfile.TemporaryDirectory() as room:
        data = Path(room) / "data"
        for split, rows in make(*ROWS, 0).items():
            write_split(data, split, rows)
        for number, (name, (pipeline, params, shape)) in enumerate(ARMS.items()):
            model = Path(room) / f"model{number}"
            write_model(model, shape)
            found = [measure(Path(room) / f"{number}-{each}", data, model, pipeline, params) for each in range(rounds)]
            line = f"{name:<20}"
            for clock in (0, 1):
                fresh, resumed = ([each[which][clock] for each in found] for which in (0, 1))
                ratios = [b / a for a, b in zip(fresh, resumed, strict=True)]
                line += f"{statistics.median(fresh):8.2f}{statistics.median(resumed):9.2f}"
                spread = f"[{min(ratios):.2f}, {max(ratios):.2f}]"
                line += f"{statistics.median(ratios):7.2f}  {spread:<15}"
            print(line + found[0][2], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
