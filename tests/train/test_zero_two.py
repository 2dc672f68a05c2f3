"""DeepSpeed ZeRO on two processes (gloo), through the worker, against plain data parallelism: the same training."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from sharding import Made, describe, environment, make, same
from transformers import AutoModelForCausalLM

from cdpo.data.prepared import read_split, write_split
from cdpo.models import load_policy

# 45 rows in batches of 32: 6 micro-batches of 3 on each rank, then 3 for the 13 rows that are left; all are clipped
PARAMS = {"learning_rate": 1e-2, "batch_size": 32, "num_train_epochs": 2.0, "max_grad_norm": 0.2}
DPO = {**PARAMS, "beta": 0.1, "loss_type": ["sigmoid", "sft"]}
LORA = {"lora": {"r": 4, "lora_alpha": 8.0}}
EVALUATED = {"eval_steps": 1, "load_best_model_at_end": True}


def trained(world: Any, folder: Path, pipeline: str, params: dict[str, Any], launcher: str | None, **inputs) -> Made:
    """A step on two processes."""
    wanted = {"processes": 2, "micro_batch": 3, "accelerate_config": launcher}
    work = describe(world, folder, pipeline, params, wanted, **inputs)
    return Made(work, make(work))


@pytest.mark.slow
def test_zero_two_trains_what_plain_data_parallelism_trains(world, tmp_path) -> None:
    plain, zero = (trained(world, tmp_path, "SFT", PARAMS, launcher) for launcher in (None, "zero2"))
    assert "DeepSpeed" in zero.log
    assert "DeepSpeed" not in plain.log
    assert len(zero.curve) == 4
    assert all(each["grad_norm"] > 2 * PARAMS["max_grad_norm"] for each in zero.curve)  # so that clipping is tried
    same(plain, zero, 1e-5)


CASES = {
    "DPO": ("DPO", DPO, "zero2", 1e-4),
    "DPO evaluated": ("DPO", {**DPO, **EVALUATED}, "zero2", 1e-4),
    "DPO bf16": ("DPO", {**DPO, "dtype": "bf16"}, "zero2", 5e-4),
    "DPO lora": ("DPO", {**DPO, **LORA}, "zero2", 1e-4),
    "RM": ("RM", PARAMS, "zero2", 1e-4),
    "DPP": ("DPP", {**PARAMS, "beta": 0.1, "p": 0.5, "pi": 0.3, "max_new_tokens": 8}, "zero2", 1e-4),
    "zero3 SFT": ("SFT", {**PARAMS, **EVALUATED}, "zero3", 1e-5),
    "zero3 DPO": ("DPO", {**DPO, **EVALUATED}, "zero3", 1e-4),
    "zero3 DPO bf16": ("DPO", {**DPO, "dtype": "bf16"}, "zero3", 5e-4),
    "zero3 DPO lora": ("DPO", {**DPO, **LORA, **EVALUATED}, "zero3", 1e-4),
    "zero3 RM": ("RM", PARAMS, "zero3", 1e-4),
    "zero3 DDP": ("DDP", {**PARAMS, "beta": 0.1, "r": 0.5, "rho": 0.3}, "zero3", 1e-4),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_method_is_trained_alike(world, sft, tmp_path, case: str) -> None:
    pipeline, params, launcher, tolerance = CASES[case]
    plain, zero = (trained(world, tmp_path, pipeline, params, each, model=sft) for each in (None, launcher))
    same(plain, zero, tolerance)


@pytest.mark.slow
def test_ranks_score_in_step_though_one_has_fewer_rows(world, tmp_path) -> None:
    # 5 rows and 4, two at a time: three passes and two, and each pass through a model in parts needs both ranks
    data = tmp_path / "data"
    for split, rows in (("train", 45), ("tune", 9), ("eval", 10)):
        write_split(data, split, read_split(world.data, split)[:rows])
    params = {**PARAMS, **EVALUATED, "num_train_epochs": 1.0}
    wanted = {"processes": 2, "micro_batch": 2}
    plain, zero = (
        describe(world, tmp_path, "SFT", params, {**wanted, "accelerate_config": launcher}, data=data)
        for launcher in (None, "zero3")
    )
    same(Made(plain, make(plain)), Made(zero, make(zero)), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["zero2", "zero3"])
def test_an_adapter_is_trained_on_and_saved_alone(world, sft_adapter, tmp_path, launcher: str) -> None:
    given = {"model_adapter": sft_adapter}
    plain, zero = (trained(world, tmp_path, "DPO", {**DPO, **LORA}, each, **given) for each in (None, launcher))
    same(plain, zero, 1e-4)
    one, other = (
        {path.name for path in made.out.iterdir() if path.suffix in (".safetensors", ".json")} for made in (plain, zero)
    )
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["zero2", "zero3"])
def test_what_is_saved_is_read_as_any_model(world, tmp_path, launcher: str) -> None:
    params = {**PARAMS, "dtype": "bf16", "num_train_epochs": 1.0}
    plain, zero = (trained(world, tmp_path, "SFT", params, each) for each in (None, launcher))
    one, other = (AutoModelForCausalLM.from_pretrained(made.out, dtype="auto") for made in (plain, zero))
    assert one.config.dtype == other.config.dtype == torch.bfloat16
    theirs = dict(other.named_parameters())
    for name, value in one.named_parameters():
        assert theirs[name].dtype == value.dtype == torch.bfloat16
        assert (theirs[name] - value).abs().max() < 0.02, name
    load_policy(zero.out, device=torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "params"), [("zero2", {}), ("zero3", {}), ("zero2", LORA)], ids=str)
def test_a_stopped_training_goes_on_with_its_optimiser_state(world, tmp_path, launcher, params) -> None:
    params = {**DPO, **params, "num_train_epochs": 20.0}
    wanted = {"processes": 2, "micro_batch": 8, "accelerate_config": launcher}
    whole = describe(world, tmp_path, "DPO", params, wanted)
    uninterrupted = Made(whole, make(whole))
    work = describe(world, tmp_path, "DPO", params, wanted)
    worker = subprocess.Popen(
        [sys.executable, "-m", "cdpo.engine.worker", str(work)],
        env=environment(work),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        limit = time.monotonic() + 120
        while not (work / "metrics.jsonl").exists() and time.monotonic() < limit:
            time.sleep(0.02)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(120) == 143
    finally:
        worker.kill()
        worker.wait()
    told = json.loads(next((work / "ckpt").glob("checkpoint-*/complete.json")).read_text())
    assert told["layout"] == "DEEPSPEED"
    assert 0 < told["step"] < 40
    resumed = Made(work, make(work))
    assert resumed.summary["resumed_from"] == [told["step"]]
    same(uninterrupted, resumed, 1e-6)
