"""A training step as a whole: it repeats itself bit for bit, reports, samples, stops early and keeps the best."""

import importlib
import json
import math

import pyarrow.parquet as pq
import pytest
import torch

from cdpo.errors import StepError
from cdpo.files import read_json_lines
from cdpo.measured import micro_batch
from cdpo.step import Device

DPO = {"learning_rate": 1e-2, "beta": 0.1, "batch_size": 16, "num_train_epochs": 2.0}


def weights(work) -> bytes:
    return (work / "out/model.safetensors").read_bytes()


def test_the_same_step_gives_the_same_bytes_and_another_seed_does_not(world, sft) -> None:
    params = {**DPO, "num_train_epochs": 1.0}
    first, second = (world.run("DPO", params, model=sft)[0] for _ in range(2))
    assert weights(first) == weights(second)
    assert (first / "out/scores.parquet").read_bytes() == (second / "out/scores.parquet").read_bytes()
    assert weights(first) != weights(world.run("DPO", params, model=sft, seed=1)[0])


def test_evaluating_and_sampling_leave_training_as_it_is(world) -> None:
    params = {"learning_rate": 1e-2, "batch_size": 16, "max_steps": 3, "lora": {"r": 4, "lora_dropout": 0.2}}
    quiet, _ = world.run("SFT", params)
    busy, _ = world.run("SFT", {**params, "eval_steps": 1})
    names = "out/adapter_model.safetensors"
    assert (quiet / names).read_bytes() == (busy / names).read_bytes()
    samples = [event for event in read_json_lines(busy / "events.jsonl") if event["event"] == "sample"]
    assert [sample["step"] for sample in samples] == [1] * 4 + [2] * 4 + [3] * 4
    assert {"prompt_id", "prompt", "response"} <= set(samples[0])
    assert len({sample["prompt_id"] for sample in samples}) == 4


def test_another_micro_batch_gives_the_same_result_within_rounding(world, sft) -> None:
    tables = [
        pq.read_table(world.run("DPO", DPO, model=sft, device={"micro_batch": size})[0] / "out/scores.parquet")
        for size in (16, 3)
    ]
    for name in ("loss", "logps/chosen", "rewards/margins"):
        one, other = (table[name].to_numpy() for table in tables)
        assert abs(one - other).max() < 2e-3, name


def test_progress_and_curves(world, sft) -> None:
    work, summary = world.run("DPO", {**DPO, "eval_steps": 2}, model=sft)
    assert summary["optimiser_steps"] == 6  # 45 rows: 3 steps an epoch, the last one of 13 rows
    points = list(read_json_lines(work / "metrics.jsonl"))
    trained = [point for point in points if "loss" in point]
    assert [point["step"] for point in trained] == [1, 2, 3, 4, 5, 6]
    assert {"learning_rate", "grad_norm", "rewards/accuracies", "rewards/margins", "logps/chosen"} <= set(trained[0])
    assert [point["step"] for point in points if "eval_loss" in point] == [2, 4, 6]
    assert {"eval_rewards/margins", "eval_logps/rejected"} <= set(points[2])
    progress = [event for event in read_json_lines(work / "events.jsonl") if event["event"] == "progress"]
    assert (progress[0]["done"], progress[-1]["done"]) == (0, 6)
    assert all(event["total"] == 6 for event in progress)
    assert {"loss", "tokens_per_second"} <= set(progress[-1])
    assert summary["training_tokens"] == trained[-1]["num_tokens"] > 0
    assert json.dumps(summary)
    assert not list((work / "ckpt").glob("checkpoint-*"))


@pytest.mark.parametrize("lora", [None, {"r": 4, "lora_alpha": 8.0}], ids=["full", "lora"])
def test_the_best_checkpoint_is_kept_and_training_stops_early(world, sft, sft_adapter, lora) -> None:
    """A learning rate that ruins the model at once: the first evaluation is the best one."""
    params = {**DPO, "learning_rate": 1.0, "lr_scheduler_type": "constant", "num_train_epochs": 10.0, "eval_steps": 1}
    params |= {"early_stopping_patience": 2, "load_best_model_at_end": True, "max_grad_norm": 0.0, "optim": "sgd"}
    inputs = {"model": sft} if lora is None else {"model_adapter": sft_adapter}
    work, summary = world.run("DPO", {**params, **({"lora": lora} if lora else {})}, **inputs)
    evaluated = [point for point in read_json_lines(work / "metrics.jsonl") if "eval_loss" in point]
    best = min(evaluated, key=lambda point: point["eval_loss"])
    assert summary["best_step"] == best["step"]
    assert summary["optimiser_steps"] == len(evaluated) <= best["step"] + 2 < 30
    assert summary["after"]["tune"]["loss"] == pytest.approx(best["eval_loss"], rel=1e-4)


def test_bf16_computes_in_bf16_and_saves_what_it_computed_in(world, sft) -> None:
    from cdpo.weights import stored_dtype

    work, summary = world.run("DPO", {**DPO, "dtype": "bf16", "max_steps": 2}, model=sft)
    assert summary["compute"] == "bf16"
    assert stored_dtype(work / "out") == "bf16"
    assert summary["before"]["eval"]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    # what comes after reads it as it is stored
    assert world.run("DPO", {**DPO, "max_steps": 1}, model=work / "out")[1]["compute"] == "bf16"
    with pytest.raises(StepError, match="fp16 is not computed on a CPU"):
        world.run("DPO", {**DPO, "dtype": "fp16", "max_steps": 1}, model=sft)


def test_micro_batches_are_chosen_where_devices_say_nothing() -> None:
    assert micro_batch(Device(), 16) == 16
    assert micro_batch(Device(), 128) == 32
    assert micro_batch(Device(kind="cuda"), 128) == 4
    assert micro_batch(Device(processes=3, micro_batch=8), 16) == 6
    assert micro_batch(Device(micro_batch=2), 16) == 2


def test_other_processes_than_were_asked_for_are_refused(world) -> None:
    with pytest.raises(StepError, match=r"asked for 2 process.*runs on 1, NO"):
        world.run("SFT", {"learning_rate": 1e-3}, device={"processes": 2, "distributed_type": "MULTI_CPU"})


def test_the_random_stream_of_a_sample_is_its_own(world, sft) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cdpo.pipelines.dpo import DPOParams
    from cdpo.train.reporting import Samples
    from cdpo.train.rows import read_splits

    step = world.step("DPO", DPO, model=sft)
    tokenizer = AutoTokenizer.from_pretrained(sft)
    rows = read_splits(step, DPOParams(**DPO), tokenizer).tune
    samples = Samples(step, tokenizer, rows)
    model = AutoModelForCausalLM.from_pretrained(sft)
    torch.manual_seed(7)
    samples.draw(model, 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"optim": "rmsprop", "lr_scheduler_type": "cosine", "warmup_ratio": 0.5},
        {"optim": "adafactor", "lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5},
        {"optim": "sgd", "lr_scheduler_type": "constant", "weight_decay": 0.1},
        {"optim": "adamw_torch", "adam_beta1": 0.5, "adam_beta2": 0.9, "attn_implementation": "eager"},
    ],
    ids=lambda settings: settings["optim"],
)
def test_optimisers_and_schedules(world, settings) -> None:
    work, _ = world.run("SFT", {"learning_rate": 1e-3, "batch_size": 16, "max_steps": 3, **settings})
    rates = [point["learning_rate"] for point in read_json_lines(work / "metrics.jsonl") if "loss" in point]
    if "warmup_ratio" in settings:
        assert rates[0] < max(rates) == pytest.approx(1e-3)
    elif settings["optim"] == "sgd":
        assert rates == [1e-3] * 3
    else:
        assert rates == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3])


def test_a_tokenizer_of_another_model_is_refused(world, sft, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(sft)
    model.resize_token_embeddings(40)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(sft).save_pretrained(tmp_path)
    with pytest.raises(StepError, match="knows 40 tokens"):
        world.run("SFT", {"learning_rate": 1e-3, "max_steps": 1}, model=tmp_path)


def test_all_tokens_are_counted_where_not_every_step_is_logged(world, sft, monkeypatch) -> None:
    monkeypatch.setattr("cdpo.train.arguments.LOGGED", 2)
    work, summary = world.run("DPO", {**DPO, "max_steps": 5}, model=sft)
    points = [point for point in read_json_lines(work / "metrics.jsonl") if "loss" in point]
    assert [point["step"] for point in points] == [2, 4]
    assert summary["training_tokens"] > points[-1]["num_tokens"]


def test_a_launcher_that_computes_in_another_type_is_refused(world, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(StepError, match="computes in fp32 and its launcher in bf16"):
        world.run("SFT", {"learning_rate": 1e-3, "max_steps": 1})


def test_what_a_killed_attempt_left_is_not_mixed_with_the_next(world, sft) -> None:
    params = {**DPO, "num_train_epochs": 1.0, "eval_steps": 1, "load_best_model_at_end": True}
    clean, _ = world.run("DPO", params, model=sft)
    step = world.step("DPO", params, model=sft)
    stale = step.checkpoints / "checkpoint-100"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"")
    (step.work / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    importlib.import_module("cdpo.pipelines.dpo").run(step)
    assert weights(step.work) == weights(clean)
    assert len(list(read_json_lines(step.work / "metrics.jsonl"))) == len(
        list(read_json_lines(clean / "metrics.jsonl"))
    )
