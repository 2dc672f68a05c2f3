"""FSDP, second version, on two processes: what cdpo does around it on CPUs; the rest where there is a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharding import Made, describe, environment, make, same

from cdpo.store import Store

HERE = Path(__file__).parent
PARAMS = {"learning_rate": 1e-2, "batch_size": 32, "num_train_epochs": 2.0, "max_grad_norm": 0.2}
DPO = {**PARAMS, "beta": 0.1, "loss_type": ["sigmoid", "sft"]}
CASES = {
    "SFT evaluated": ("SFT", {**PARAMS, "eval_steps": 1, "load_best_model_at_end": True}, 1e-5),
    "DPO bf16": ("DPO", {**DPO, "dtype": "bf16"}, 5e-4),
    "DPO lora": ("DPO", {**DPO, "lora": {"r": 4, "lora_alpha": 8.0}}, 1e-4),
    "RM": ("RM", PARAMS, 1e-4),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_fsdp_trains_scores_and_saves_what_plain_data_parallelism_does(world, sft, tmp_path, case: str) -> None:
    pipeline, params, tolerance = CASES[case]
    wanted = {"processes": 2, "micro_batch": 3}
    plain, cut = (describe(world, tmp_path, pipeline, params, wanted, model=sft) for _ in range(2))
    described = json.loads((cut / "step.json").read_text())
    described["device"] |= {"distributed_type": "FSDP", "fsdp_version": 2}
    (cut / "step.json").write_text(json.dumps(described))
    (cut / "out").mkdir()
    assert Store(cut.parent.parent).lock(cut.name) is not None  # a worker's, which this test stands for
    file = HERE.parent.parent / "configs" / "accelerate" / "fsdp2.yaml"
    launch = ["accelerate.commands.launch", "--config_file", str(file), "--num_processes", "2", "--num_machines", "1"]
    command = [sys.executable, "-m", *launch, "--main_process_port", "0", str(HERE / "fsdp_rank.py"), str(cut)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment(cut))
    assert ended.returncode == 0, ended.stderr[-6000:]
    same(Made(plain, make(plain)), Made.by_ranks(cut), tolerance)


ON_GPUS = {
    "zero2": ("DPO", DPO),
    "zero3": ("DPO", DPO),
    "fsdp2": ("DPO", DPO),
    "zero3 lora": ("DPO", {**DPO, "lora": {"r": 4, "lora_alpha": 8.0}}),
    "fsdp2 lora": ("DPO", {**DPO, "lora": {"r": 4, "lora_alpha": 8.0}}),
    "fsdp2 RM": ("RM", PARAMS),
    "zero2 DPP": ("DPP", {**PARAMS, "beta": 0.1, "p": 0.5, "pi": 0.3, "max_new_tokens": 8}),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
@pytest.mark.parametrize("case", ON_GPUS)
def test_on_gpus_each_launcher_trains_what_one_process_trains(world, sft, tmp_path, case: str) -> None:
    """On two of them where there are two; on one the launchers set up the same with a single part."""
    pipeline, params = ON_GPUS[case]
    params = {**params, "dtype": "bf16"}
    card = torch.cuda.get_device_name(0)
    wanted = {"micro_batch": 8, "processes": min(2, torch.cuda.device_count())}
    launcher = f"{case.split()[0]}.yaml"
    alone = describe(world, tmp_path, pipeline, params, {"micro_batch": 8}, card=card, model=sft)
    shared = describe(
        world, tmp_path, pipeline, params, {**wanted, "accelerate_config": launcher}, card=card, model=sft
    )
    same(Made(alone, make(alone)), Made(shared, make(shared)), 2e-2)
