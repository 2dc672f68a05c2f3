"""Two processes (torchrun, gloo) give the losses of one with the same global batches, at every step."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sailing import Room

SCRIPT = '''
"""As a user writes it: no tasks.yaml, TRL's datasets, a reward model's folder."""
import json, os, sys
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from cdpo import SAILConfig, SAILTrainer

folder, options, micro, accumulation = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder + "/policy")
with torch.no_grad():
    model.get_input_embeddings().weight.mul_(4.0)
if options.pop("lora", False):
    from peft import LoraConfig
    torch.manual_seed(0)
    given = {"peft_config": LoraConfig(r=4, lora_alpha=8.0, target_modules="all-linear", init_lora_weights=False)}
else:
    given = {"ref_model": AutoModelForCausalLM.from_pretrained(folder + "/other")}
arguments = SAILConfig(
    folder + f"/two{os.environ.get('WORLD_SIZE', 1)}", per_device_train_batch_size=micro,
    gradient_accumulation_steps=accumulation, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
    logging_steps=1, learning_rate=1e-3, lr_scheduler_type="constant", max_length=None, seed=7, num_train_epochs=2,
    disable_tqdm=True, **options)
trainer = SAILTrainer(
    model, args=arguments, train_dataset=load_dataset("json", data_files=folder + "/pairs.jsonl", split="train"),
    eval_dataset=load_dataset("json", data_files=folder + "/held_out.jsonl", split="train"),
    reward_model=folder + "/reward", **given)
trainer.train()
scores = trainer.evaluate()
if trainer.is_world_process_zero():
    with open(sys.argv[5], "w") as stream:
        json.dump({"log": trainer.state.log_history, "scores": scores,
                   "realised": {route.name: count for route, count in trainer.sail.realised.items()},
                   "baseline": trainer.sail.mean_preference}, stream)
# taking the interpreter down while gloo's threads live was seen to abort it, after all was done
trainer.accelerator.wait_for_everyone()
os._exit(0)
'''
MIX = {"r": 0.2, "p": 0.25, "g": 0.25, "rho": 0.5, "pi": 0.3, "gamma": 0.3, "max_new_tokens": 6}
CASES = [
    pytest.param({"staleness": 1, "baseline": "moving", "loss_type": ["dpo_pro"], "weight_column": "weight"}, id="mix"),
    pytest.param({"reward_labels": "bt", "gradient_checkpointing": False}, id="full"),
    pytest.param({"lora": True, "staleness": 2}, id="lora"),
]


@pytest.fixture(scope="module")
def project(room: Room) -> Path:
    import torch
    from transformers import AutoModelForSequenceClassification

    for split, name in (("train", "pairs"), ("tune", "held_out")):
        numbers = [{"bt_prob": 0.3 + at / 60, "weight": 0.5 + at % 3} for at in range(len(room.texts[split]))]
        lines = [json.dumps({**row, **own}) for row, own in zip(room.dataset(split), numbers, strict=True)]
        (room.folder / f"{name}.jsonl").write_text("\n".join(lines))
    torch.manual_seed(1)
    reward = AutoModelForSequenceClassification.from_pretrained(room.policy, num_labels=1)
    reward.config.pad_token_id = room.tokenizer.pad_token_id
    with torch.no_grad():
        reward.score.weight.normal_()
        reward.get_input_embeddings().weight.mul_(4.0)
    reward.save_pretrained(room.folder / "reward")
    room.tokenizer.save_pretrained(room.folder / "reward")
    return room.folder


def train(project: Path, processes: int, micro: int, accumulation: int, options: dict[str, Any]) -> dict[str, Any]:
    script, result = project / "plain.py", project / f"result{processes}.json"
    script.write_text(SCRIPT)
    words = [script, project, json.dumps({**MIX, **options}), micro, accumulation, result]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes > 1 else []
    ended = subprocess.run(
        [sys.executable, *map(str, [*launcher, *words])], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(result.read_text())


@pytest.mark.fault(9)
@pytest.mark.parametrize("options", CASES)
@pytest.mark.slow
def test_two_processes_give_what_one_gives(project: Path, options: dict[str, Any]) -> None:
    """29 rows in batches of 12: parts of 3, the last one of uneven parts."""
    alone, split = train(project, 1, 12, 1, options), train(project, 2, 3, 2, options)
    steps = [[entry for entry in found["log"] if "loss" in entry] for found in (alone, split)]
    assert len(steps[0]) == len(steps[1]) == 6
    for one, two in zip(*steps, strict=True):
        assert one.keys() == two.keys()
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5), one["step"]
        for name in one:
            # TRL's means over tokens are weighted by rows here
            if name.startswith(("rewards/", "logps/", "sail/", "num_tokens")) and "seconds" not in name:
                assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), (one["step"], name)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    assert any(one["loss"] != steps[0][0]["loss"] for one in steps[0])
    assert split["realised"] == alone["realised"]
    assert all(alone["realised"][route] for route in ("DDP", "DPP", "DPR", "OFFLINE"))
    assert split["scores"] == pytest.approx(alone["scores"], rel=1e-4, abs=1e-5)
    assert split["baseline"] == (None if alone["baseline"] is None else pytest.approx(alone["baseline"], abs=1e-5))
