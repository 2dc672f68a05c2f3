"""Launcher files: found behind the project's own, held against the task, refused where they would not serve."""

from pathlib import Path

import pytest

from cdpo.config.devices import read_devices
from cdpo.config.launchers import Launcher, find_launcher, read_launcher
from cdpo.config.problems import ConfigError
from cdpo.config.tables import shipped_configs

SHIPPED = {
    "zero2.yaml": Launcher("DEEPSPEED", zero_stage=2),
    "zero3.yaml": Launcher("DEEPSPEED", zero_stage=3),
    "fsdp2.yaml": Launcher("FSDP", fsdp_version=2),
    "ddp_multinode.yaml": Launcher("MULTI_GPU"),
}

ZERO = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 2\n"
WRONG = {
    "distributed_type: MEGATRON_LM\n": "1:19: distributed_type: should be one of NO, MULTI_CPU, MULTI_GPU, DEEPSPEED",
    "num_processes: 2\n": "1:1: distributed_type: should be one of",
    "distributed_type: DEEPSPEED\n": "1:1: deepspeed_config.zero_stage: should be 1, 2 or 3, not nothing",
    ZERO.replace("2", "0"): "3:15: deepspeed_config.zero_stage: should be 1, 2 or 3, not 0",
    ZERO + "  gradient_accumulation_steps: 4\n": "4:3: deepspeed_config.gradient_accumulation_steps: take it out",
    ZERO + "  gradient_clipping: 1.0\n": "4:3: deepspeed_config.gradient_clipping: take it out of here: max_grad_norm",
    ZERO + "  deepspeed_config_file: ds.json\n": "4:3: deepspeed_config.deepspeed_config_file: take it out of here",
    ZERO + "  deepspeed_multinode_launcher: pdsh\n": "4:33: deepspeed_config.deepspeed_multinode_launcher: should be",
    ZERO + "mixed_precision: bf16\n": "4:18: mixed_precision: take it out of here: dtype in the task decides it",
    "distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\n": "2:29: fsdp_config.fsdp_version: should be 2, not 1",
    "distributed_type: FSDP\n": "1:1: fsdp_config.fsdp_version: should be 2, not nothing",
}

DEVICES = {
    "DPO: {accelerate_config: zro2.yaml}": "has no zro2.yaml (did you mean 'zero2.yaml'?)",
    "DPO: {accelerate_config: fsdp2.yaml}": "FSDP needs GPUs, and `gpus: []` leaves none",
    "DPO: {accelerate_config: zero2, distributed_type: MULTI_GPU}": "distributed_type here is MULTI_GPU, and that file",
    "DPR: {accelerate_config: zero3}": "DPR samples from the policy while it trains, which needs whole weights",
    "DPO: {processes: 3, nodes: 2}": "3 processes cannot be spread evenly over 2 nodes",
    "DPO: {processes: 4, nodes: 2}": "more than one node needs `engine: slurm`, and the engine is local",
}


def test_what_is_shipped_serves() -> None:
    folder = shipped_configs() / "accelerate"
    assert {path.name: read_launcher(path) for path in folder.iterdir()} == SHIPPED


def test_a_project_s_own_file_stands_before_the_shipped_one(tmp_path: Path) -> None:
    assert find_launcher("zero2", tmp_path) == (shipped_configs() / "accelerate" / "zero2.yaml").resolve()
    (tmp_path / "accelerate").mkdir()
    own = tmp_path / "accelerate" / "zero2.yaml"
    own.write_text(ZERO)
    assert find_launcher("zero2.yaml", tmp_path) == own
    assert find_launcher(str(own), tmp_path) == own


@pytest.mark.parametrize("text", WRONG)
def test_what_the_task_decides_and_what_cannot_be_trained_with_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_launcher(file)
    assert any(str(each).startswith(f"{file}:{WRONG[text]}") for each in caught.value.problems), str(caught.value)


def test_values_left_to_the_worker_are_no_contradiction(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(ZERO + "  gradient_clipping: auto\n  gradient_accumulation_steps: auto\nmixed_precision: 'no'\n")
    assert read_launcher(file) == Launcher("DEEPSPEED", zero_stage=2)


@pytest.mark.parametrize("entry", DEVICES)
def test_devices_and_launchers_must_go_together(entry: str, tmp_path: Path) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text(f"gpus: []\npipelines:\n  {entry}\n")
    with pytest.raises(ConfigError) as caught:
        read_devices(file)
    assert any(DEVICES[entry] in str(each) for each in caught.value.problems), str(caught.value)


def test_a_step_knows_what_its_launcher_is_to_set_up(tmp_path: Path) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text(
        "engine: slurm\npipelines:\n  DPO: {processes: 16, nodes: 2, accelerate_config: zero3}\n"
        "  SFT: {processes: 2, accelerate_config: ddp_multinode}\n"
    )
    devices = read_devices(file)
    device = devices.device("DPO", "NVIDIA A100-SXM4-80GB")
    assert (device.distributed_type, device.zero_stage, device.nodes, device.processes) == ("DEEPSPEED", 3, 2, 16)
    assert Path(device.accelerate_config or "").is_absolute()
    assert devices.device("SFT", None).distributed_type == "MULTI_CPU"
    assert devices.device("SFT", "NVIDIA A100-SXM4-80GB").distributed_type == "MULTI_GPU"
    # as a job on another machine reads it again
    again = type(devices).model_validate(devices.model_dump(mode="json"))
    assert again.device("DPO", "NVIDIA A100-SXM4-80GB") == device
