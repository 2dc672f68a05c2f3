"""`python vllm_checks.py FOLDER PATH ...`: SAIL's sampler in vLLM, in an environment that has vLLM's build for CPUs.

Packages that are not there are looked for in PATH ...: cdpo, and TRL.

Its kernels for CPUs keep packed copies of the weights, which do not follow; without oneDNN it computes with the weights
themselves, as it does on a GPU. Prints what was found as one JSON object.
"""

import json
import sys
from pathlib import Path

sys.path += sys.argv[2:]

import torch

from cdpo.config.params import SamplingParams
from cdpo.data.tiny import build_tiny
from cdpo.errors import StepError
from cdpo.generate.backend import Item
from cdpo.generate.transformers_backend import generate
from cdpo.models import load_policy
from cdpo.sail.vllm_sampler import VLLMSampler, merged_weights

CPU, END = torch.device("cpu"), 3
#: no compiler, so that it starts sooner
EAGER = {"enforce_eager": True}
GREEDY = SamplingParams(do_sample=False, max_new_tokens=16)


def tiny(folder: Path, seed: int):
    build_tiny({"kind": "tiny", "seed": seed}, folder)
    return load_policy(folder, device=CPU)


def items() -> list[Item]:
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 40, (20,), generator=draw).tolist()
    return [Item(torch.randint(7, 60, (n,), generator=draw).tolist(), 2**62 + n) for n in lengths]


def same(sampler: VLLMSampler, model) -> int:
    """How many greedy responses are those of `model` token for token."""
    asked = items()
    theirs = dict(generate(model, asked, GREEDY, end_ids=[END], pad_id=0, batch_size=20))
    ours = dict(sampler.generate(model, asked, GREEDY, end_ids=[END]))
    assert ours.keys() == theirs.keys()
    return sum(ours[at].token_ids == theirs[at].token_ids for at in ours)


def adapted(model):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return wrapped.eval()


def trained(folder: Path) -> dict:
    """A training of three steps on pairs that vLLM samples: its last metrics, and whether vLLM saw the last weights."""
    from datasets import Dataset

    import cdpo.sail.workshop as workshop
    from cdpo import SAILConfig, SAILTrainer
    from cdpo.models import load_tokenizer

    workshop.refuse_vllm = lambda args: None
    rows = [{"prompt": f"count to {at}", "chosen": "one two", "rejected": "two one"} for at in range(8)]
    arguments = SAILConfig(
        str(folder / "out"),
        p=0.9,
        temperature=1.0,
        max_new_tokens=8,
        max_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        per_device_train_batch_size=4,
        backend="vllm",
        vllm_options=EAGER,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
    )
    tokenizer = load_tokenizer(folder / "first")
    trainer = SAILTrainer(
        load_policy(folder / "first", device=CPU),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    sampler = trainer.workshop.sampler
    return {
        "equal to the trained": same(sampler, trainer.model),
        "losses": [each["loss"] for each in trainer.state.log_history if "loss" in each],
    }


def main(folder: Path) -> None:
    import vllm._custom_ops as ops

    found = {}
    first = tiny(folder / "first", 0)
    packed = ops._supports_onednn
    ops._supports_onednn = False
    sampler = VLLMSampler(str(folder / "first"), "float32", EAGER)
    found["as loaded"] = same(sampler, first)
    found["other weights"] = same(sampler, tiny(folder / "second", 1))
    found["back again"] = same(sampler, first)
    found["apart"] = sampler.apart
    with_adapter = adapted(tiny(folder / "third", 2))
    before = {name: value.clone() for name, value in with_adapter.state_dict().items()}
    found["an adapter"] = same(sampler, with_adapter)
    found["untouched"] = all(torch.equal(before[name], value) for name, value in with_adapter.state_dict().items())
    merged = dict(merged_weights(with_adapter))
    found["names"] = sorted(merged) == sorted(name for name, _ in first.named_parameters())
    sampled = SamplingParams(temperature=0.7, max_new_tokens=8)
    twice = [dict(sampler.generate(first, items(), sampled, end_ids=[END])) for _ in range(2)]
    found["the same seeds"] = sum(twice[0][at].token_ids == twice[1][at].token_ids for at in twice[0])
    found["training"] = trained(folder)
    # packed weights, which do not follow: found out
    ops._supports_onednn = packed
    deaf = VLLMSampler(str(folder / "first"), "float32", EAGER)
    try:
        found["deaf"] = same(deaf, tiny(folder / "fourth", 3))
    except StepError as error:
        found["deaf"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
