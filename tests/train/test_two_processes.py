"""Two ranks under torchrun (gloo) against one process: the same batches, the same result within rounding."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

RANK = """
import importlib, json, os, sys
from pathlib import Path
from cdpo.step import Step
rank = int(os.environ["RANK"])
step = Step.read(Path(sys.argv[1]), rank)
summary = importlib.import_module("cdpo.pipelines." + step.pipeline.lower()).run(step)
if rank == 0:
    (step.work / "result.json").write_text(json.dumps(summary))
"""


def two(step) -> tuple[Path, dict]:
    """Run a step of `World.step` on two ranks."""
    described = {name: getattr(step, name) for name in ("pipeline", "key", "name", "params", "inputs", "seed")}
    (step.work / "step.json").write_text(json.dumps({**described, "device": asdict(step.device)}))
    script = step.work / "rank.py"
    script.write_text(RANK)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, step.work]
    ended = subprocess.run([str(each) for each in launch], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return step.work, json.loads((step.work / "result.json").read_text())


SLOW = (pytest.param(each, marks=pytest.mark.slow) for each in ("SFT", "RM", "DPO lora"))


@pytest.mark.parametrize("pipeline", ["DPO", *SLOW])
def test_two_ranks_give_what_one_process_gives(world, sft, sft_adapter, pipeline: str) -> None:
    # 45 rows in batches of 16 and parts of 3: the last batch is incomplete, and some parts are shorter than others
    name, _, lora = pipeline.partition(" ")
    params = {"learning_rate": 1e-2, "batch_size": 16, "num_train_epochs": 1.0}
    if name == "DPO":
        params |= {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "eval_steps": 2, "load_best_model_at_end": True}
    inputs = {"model_adapter": sft_adapter} if lora else {"model": sft}
    if lora:
        params["lora"] = {"r": 4, "lora_alpha": 8.0}
    device = {"processes": 2, "micro_batch": 3, "distributed_type": "MULTI_CPU"}
    split, summary = two(world.step(name, params, device=device, **inputs))
    whole, alone = world.run(name, params, device={"micro_batch": 16}, **inputs)
    assert summary["processes"] == 2
    assert summary["optimiser_steps"] == alone["optimiser_steps"] == 3
    assert summary["training_tokens"] == alone["training_tokens"]
    one, other = (pq.read_table(work / "out/scores.parquet") for work in (whole, split))
    assert one.column("prompt_id").equals(other.column("prompt_id"))
    for column in set(one.column_names) - {"split", "prompt_id", "rm/accuracy", "rewards/accuracies"}:
        difference = abs(one[column].to_numpy() - other[column].to_numpy()).max()
        assert difference < 5e-3, column
    curves = [
        [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()] for work in (whole, split)
    ]
    for mine, theirs in zip(*curves, strict=True):
        assert mine.keys() == theirs.keys()
        for metric in mine.keys() & {"loss", "eval_loss", "rewards/margins", "grad_norm"}:
            assert theirs[metric] == pytest.approx(mine[metric], rel=5e-3, abs=1e-3), metric
