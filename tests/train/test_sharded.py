"""What does not go with weights or optimiser state in parts is refused, with what to do."""

import importlib.util

import pytest
from sharding import describe, make

from cdpo.config.params import TrainingParams
from cdpo.engine.ranks import launchers
from cdpo.errors import StepError
from cdpo.step import Device
from cdpo.train.sharded import refuse_unshardable

ZERO = Device(processes=2, distributed_type="DEEPSPEED", zero_stage=2, accelerate_config="zero2.yaml")
FSDP = Device(kind="cuda", processes=2, distributed_type="FSDP", fsdp_version=2)


@pytest.mark.parametrize("device", [ZERO, FSDP], ids=lambda device: device.distributed_type)
def test_what_would_compute_something_else_is_refused(device: Device) -> None:
    def refuse(compute: str = "bf16", **params: object) -> None:
        refuse_unshardable(device, TrainingParams.model_validate({"learning_rate": 1.0, **params}), compute)

    refuse()
    with pytest.raises(StepError, match=r"adafactor looks at whole matrices.* or leave accelerate_config out"):
        refuse(optim="adafactor")
    with pytest.raises(StepError, match="quantised weights"):
        refuse(quantization="nf4", lora=True)
    with pytest.raises(StepError, match="write `dtype: bf16`"):
        refuse("fp16")
    plain = Device(processes=2, distributed_type="MULTI_CPU")
    refuse_unshardable(plain, TrainingParams(learning_rate=1.0, optim="adafactor"), "fp16")


def test_deepspeed_that_is_not_installed_is_said_with_how_to_get_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StepError, match=r"zero2.yaml asks for DeepSpeed, which is not installed: pip install 'cdpo"):
        launchers.run(tmp_path, ZERO)


def test_a_method_that_samples_is_refused_where_weights_are_cut(world) -> None:
    params = {"learning_rate": 1e-3, "max_steps": 1, "beta": 0.1, "p": 0.5, "pi": 0.3, "max_new_tokens": 4}
    step = world.step("DPP", params)
    step.device = Device(processes=2, distributed_type="DEEPSPEED", zero_stage=3)
    from cdpo.pipelines.sail import run

    with pytest.raises(StepError, match=r"DPP samples from the policy .* name zero2.yaml"):
        run(step)


@pytest.mark.slow
def test_a_launcher_that_sets_up_another_stage_is_found_out(world, tmp_path) -> None:
    params = {"learning_rate": 1e-3, "max_steps": 1, "batch_size": 8}
    work = describe(world, tmp_path, "SFT", params, {"processes": 2, "micro_batch": 4, "accelerate_config": "zero2"})
    described = (work / "step.json").read_text()
    (work / "step.json").write_text(described.replace('"zero_stage": 2', '"zero_stage": 3'))
    ended = make(work)
    assert ended.returncode == 1
    assert "the step asks DeepSpeed for zero_optimization.stage 3, and its settings say 2" in ended.stderr
