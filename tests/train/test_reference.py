"""REFERENCE: what it computes is the policy's own, and what training makes of it is what it made of its own."""

import json
import math
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from resuming import KILLED, Case, Interrupt
from test_dpo import logp
from test_two_processes import two
from transformers import AutoModelForCausalLM, AutoTokenizer

from cdpo.data.prepared import read_split, write_split
from cdpo.data.tokens import encode
from cdpo.errors import OutOfMemory, StepError
from cdpo.pipelines import sail
from cdpo.train import micro_batch
from cdpo.train.trl_adapter import DPOTrainer
from tests.score.killing import kill_after

LORA = {"r": 4, "lora_alpha": 8.0}
#: one epoch: 45 rows, 3 optimiser steps
PARAMS = {"learning_rate": 1e-2, "beta": 0.1, "batch_size": 16}
SPLITS = {"train": 45, "tune": 12, "eval": 10}


def reference(world, params=None, **options):
    """The out folder of a REFERENCE step."""
    return world.run("REFERENCE", params or {}, **options)[0] / "out"


def table(folder, split="train"):
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def numbers(work):
    found = pq.read_table(work / "out/scores.parquet")
    return [found[name].to_numpy() for name in found.column_names if name not in ("split", "prompt_id")]


def curve(work):
    """What was logged, but for times."""
    points = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if "seconds" not in name} for each in points]


def test_each_number_is_the_policys_log_probability_of_one_response(world, sft) -> None:
    out = reference(world, model=sft)
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(sft), AutoTokenizer.from_pretrained(sft)
    for split, count in SPLITS.items():
        rows, found = read_split(world.data, split), table(out, split)
        assert [row["prompt_id"] for row in found] == [row["prompt_id"] for row in rows]
        assert len(found) == count
        for row, numbers in zip(rows, found, strict=True):
            for side in ("chosen", "rejected"):
                expected = logp(policy, *encode(tokenizer, row["prompt"], row[side]))
                assert numbers[f"ref_{side}_logps"] == pytest.approx(expected, abs=1e-4)


CASES = {
    "all weights": ({}, {}, "sft"),
    "bf16": ({"dtype": "bf16"}, {}, "sft"),
    "an adapter merged": ({}, {}, "adapter"),
    "a new adapter": ({"lora": LORA}, {"trains_adapter": True}, "sft"),
    "an adapter trained on": ({"lora": LORA}, {"trains_adapter": True}, "adapter"),
    "an adapter in bf16": ({"lora": LORA, "dtype": "bf16"}, {"trains_adapter": True, "dtype": "bf16"}, "adapter"),
    "tokens that both share": ({"ld_alpha": 0.5}, {"ld_alpha": 0.5}, "sft"),
    "several losses": ({"loss_type": ["sigmoid_norm", "ipo", "sft"]}, {}, "sft"),
}
CASES["bf16"][1]["dtype"] = "bf16"


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_for_bit_what_it_is_with_a_reference_of_its_own(world, sft, sft_adapter, case: str) -> None:
    """Where REFERENCE has the batches that training would have."""
    params, decide, of = CASES[case]
    inputs = {"model": sft} if of == "sft" else {"model_adapter": sft_adapter}
    own, alone = world.run("DPO", {**PARAMS, **params}, **inputs)
    given = reference(world, decide, **inputs)
    work, summary = world.run("DPO", {**PARAMS, **params}, reference=given, **inputs)
    assert (alone["reference_rows"], summary["reference_rows"]) == (sum(SPLITS.values()), 0)
    for mine, theirs in zip(numbers(own), numbers(work), strict=True):
        assert (mine == theirs).all()
    assert curve(own) == curve(work)
    assert summary["before"]["eval"]["rewards/margins"] == 0.0 or "ld_alpha" in params or "dtype" in params


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_other_batches_round_otherwise(world, sft, rows: int) -> None:
    usual, other = (table(reference(world, model=sft, device={"micro_batch": each})) for each in (8, rows))
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert [row[name] for row in other] == pytest.approx([row[name] for row in usual], abs=1e-4, rel=1e-6)


def test_a_switched_label_takes_its_numbers_along(world, sft) -> None:
    noise = {"noise_type": "label_switching", "noise_level": 0.5}
    given = reference(world, model=sft)
    own, _ = world.run("DPO", {**PARAMS, **noise}, model=sft)
    work, summary = world.run("DPO", {**PARAMS, **noise}, model=sft, reference=given)
    assert 10 < summary["rows"]["train"]["noise"]["switched"] < 35
    # before the first step the policy is the reference: a number of the other response would be a margin
    first = curve(work)[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
    for mine, theirs in zip(numbers(own), numbers(work), strict=True):
        assert theirs == pytest.approx(mine, abs=1e-4)


@pytest.mark.parametrize("rows", [{"limit": 20}, {"max_steps": 1}, {"limit": 30, "max_steps": 1}])
def test_of_rows_that_are_drawn_only_those_are_there(world, sft, rows) -> None:
    decide = {"limit": rows.get("limit")}
    if "max_steps" in rows:
        decide["first_rows"] = {"rows": 16 * rows["max_steps"]}
    given = reference(world, decide, model=sft, seed=5)
    many = 16 if "max_steps" in rows else rows["limit"]
    assert [len(table(given, split)) for split in SPLITS] == [many, 12, 10]
    own, alone = world.run("DPO", {**PARAMS, **rows}, model=sft, seed=5)
    work, _ = world.run("DPO", {**PARAMS, **rows}, model=sft, seed=5, reference=given)
    assert alone["reference_rows"] == many + 22
    for mine, theirs in zip(numbers(own), numbers(work), strict=True):
        assert (mine == theirs).all()
    with pytest.raises(StepError, match=r"has no reference for row \w+ of 'train', .*not made for this step"):
        world.run("DPO", {**PARAMS, **rows}, model=sft, seed=6, reference=given)


def test_numbers_of_other_tokens_are_refused(world, sft, tmp_path) -> None:
    """The same prompts with other answers, as after a change of template or data."""
    other = tmp_path / "data"
    for split in SPLITS:
        rows = read_split(world.data, split)
        if split == "tune":
            rows[3]["chosen"] = rows[4]["chosen"]
        write_split(other, split, rows)
    given = reference(world, model=sft, data=other)
    wrong = read_split(other, "tune")[3]["prompt_id"]
    with pytest.raises(StepError, match=f"the reference of other tokens for row {wrong} of 'tune'"):
        world.run("DPO", PARAMS, model=sft, reference=given)


def test_pairs_of_the_policys_own_have_a_reference_of_their_own(world, sft) -> None:
    params = {"learning_rate": 1e-3, "beta": 0.1, "batch_size": 16, "max_steps": 2, "temperature": 0.8}
    params |= {"p": 0.4, "pi": 0.3, "max_new_tokens": 8}
    own = world.step("DPP", params, model=sft)
    alone = sail.run(own)
    given = reference(world, {"first_rows": {"rows": 32, "room": 8}}, model=sft)
    assert len(table(given)) == 32
    step = world.step("DPP", params, model=sft, reference=given)
    summary = sail.run(step)
    sampled = round(summary["sail"]["realised"]["DPP"] * summary["sail"]["rows"])
    assert summary["reference_rows"] == sampled > 0
    # its own: rows that keep their pair, both other splits, and the pairs
    assert alone["reference_rows"] == 32 - sampled + 22 + sampled
    # some rows of REFERENCE's batches are sampled here: batches differ, and so does rounding
    for mine, theirs in zip(numbers(own.work), numbers(step.work), strict=True):
        assert theirs == pytest.approx(mine, abs=1e-4)


def test_a_policy_labels_its_own_rows_with_the_reference_that_was_read(world, sft) -> None:
    params = {"learning_rate": 1e-3, "beta": 0.1, "batch_size": 16, "num_train_epochs": 2.0, "r": 0.5, "rho": 0.3}
    own, step = (
        world.step("DDP", params, model=sft, **given) for given in ({}, {"reference": reference(world, model=sft)})
    )
    sail.run(own)
    assert sail.run(step)["reference_rows"] == 0
    for mine, theirs in zip(numbers(own.work), numbers(step.work), strict=True):
        assert (mine == theirs).all()


def test_numbers_of_other_types_are_not_taken_and_that_is_said(world, sft) -> None:
    """An adapter that DeepSpeed trains lies over weights in fp32, and REFERENCE has them in bf16."""
    params = {**PARAMS, "lora": LORA, "dtype": "bf16"}
    given = reference(world, {"dtype": "bf16"}, model=sft)
    own, _ = world.run("DPO", params, model=sft)
    work, summary = world.run("DPO", params, model=sft, reference=given)
    assert summary["reference_rows"] == sum(SPLITS.values())
    assert "the reference is computed anew: weights fp32 there, bf16 here" in (work / "events.jsonl").read_text()
    for mine, theirs in zip(numbers(own), numbers(work), strict=True):
        assert (mine == theirs).all()


def test_a_killed_step_goes_on(world, sft) -> None:
    from cdpo.pipelines.reference import run

    whole = reference(world, model=sft, device={"micro_batch": 1})
    step = world.step("REFERENCE", {}, model=sft, device={"micro_batch": 1})
    kill_after(20, run, step)
    (journal,) = step.checkpoints.glob("reference-train-*.jsonl")
    assert len(journal.read_text().splitlines()) == 20
    kept = journal.read_bytes()
    run(step)
    assert journal.read_bytes().startswith(kept)
    assert len(journal.read_text().splitlines()) == SPLITS["train"]
    for split in SPLITS:
        assert table(step.out, split) == table(whole, split)


@pytest.mark.slow
def test_two_processes_share_the_rows(world, sft) -> None:
    alone = reference(world, model=sft)
    device = {"processes": 2, "micro_batch": 4, "distributed_type": "MULTI_CPU"}
    work, summary = two(world.step("REFERENCE", {}, model=sft, device=device))
    assert summary["reference_rows"] == sum(SPLITS.values())
    for split in SPLITS:
        ours, theirs = table(work / "out", split), table(alone, split)
        assert [row["chosen"] for row in ours] == [row["chosen"] for row in theirs]
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            assert [row[name] for row in ours] == pytest.approx([row[name] for row in theirs], abs=1e-4)


def test_too_little_memory_asks_for_half_the_rows(world, sft, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", full)
    with pytest.raises(OutOfMemory) as caught:
        reference(world, model=sft, device={"micro_batch": 8})
    assert caught.value.rows == 8
    monkeypatch.undo()
    _, summary = world.run("REFERENCE", {}, model=sft, device={"micro_batch": 8, "halved": True})
    assert summary["rows_at_once"] == 4


def test_what_shares_out_training_is_refused(world, sft) -> None:
    with pytest.raises(StepError, match="DEEPSPEED shares out what training needs: give it `pipelines"):
        reference(world, model=sft, device={"distributed_type": "DEEPSPEED", "zero_stage": 3})


def test_numbers_come_back_as_they_were(world, sft, tmp_path) -> None:
    """A float32 in a float64 column; nothing is rounded on the way."""
    rows = table(reference(world, model=sft))
    path = tmp_path / "again.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert pq.read_table(path).to_pylist() == rows
    assert all(row["ref_chosen_logps"] == torch.tensor(row["ref_chosen_logps"]).item() for row in rows)


def test_training_goes_on_with_what_it_read(world, sft, tmp_path) -> None:
    """Killed in its second epoch, where the policy is no reference any more; and without REFERENCE, for comparison."""
    params = {**PARAMS, "num_train_epochs": 2.0}
    given = reference(world, model=sft)
    own, whole, broken = (
        Case(world, tmp_path / name, "DPO", params, device={"micro_batch": 8}, model=sft, **read)
        for name, read in {"own": {}, "whole": {"reference": given}, "broken": {"reference": given}}.items()
    )
    assert own.attempt() == whole.attempt() == 0, whole.said()
    assert broken.attempt(Interrupt(5, signal.SIGKILL)) == KILLED, broken.said()
    assert not list((broken.work / "ckpt").glob("reference-*"))
    assert broken.attempt() == 0, broken.said()
    assert broken.made().summary["resumed_from"] == [4]
    assert own.made().files == whole.made().files == broken.made().files


@pytest.mark.slow
def test_a_probe_computes_its_own(world, sft, tmp_path) -> None:
    """Its rows are not those of the step: what the step reads, it does not."""
    given = reference(world, model=sft)
    device = {"micro_batch": None, "memory": 64 * 10**9}
    case = Case(world, tmp_path, "DPO", {**PARAMS, "max_steps": 3}, device=device, model=sft, reference=given)

    def long_steps() -> None:
        micro_batch.LONG = 0.0

    assert case.attempt(prepare=long_steps) == 0, case.said()
    assert any("rows at once need" in each for each in case.notes())
    assert case.made().summary["reference_rows"] == 0
