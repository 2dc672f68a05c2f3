"""Tokens per second of each backend that answers here, and the seconds before it does.

    python benchmarks/backends.py [VLLM_PYTHON]

With a GPU a Llama of 0.5 billion random weights in bf16, without one a tiny model in fp32. Prompts of 20 to 200 tokens,
responses of up to 128 that end by chance after any of them (one token in 100 is an end token), as uneven as real ones.
VLLM_PYTHON is the interpreter that has vLLM; without it the one that runs this, if it has. Rounds are interleaved and
the first is not counted, what is shown are medians; others must leave the machine alone. Seconds before: the model
loaded and one prompt answered.
"""

import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _machine import print_machine
from transformers import LlamaConfig, LlamaForCausalLM

from cdpo.config.params import SamplingParams
from cdpo.generate.backend import Backend, Item
from cdpo.generate.continuous_backend import ContinuousBackend
from cdpo.generate.transformers_backend import TransformersBackend
from cdpo.generate.vllm_backend import VllmBackend
from cdpo.models import load_policy

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = "bf16" if GPU else "fp32"
PROMPTS, ROUNDS = (512, 3) if GPU else (64, 3)
BATCHES = (32, 128) if GPU else (8, 32)
SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=128)
#: as Qwen2.5-0.5B; and a tiny one with heads that vLLM has kernels for
SHAPE = (
    {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}
    | {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
    if GPU
    else {"vocab_size": 2000, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3}
    | {"num_attention_heads": 4, "tie_word_embeddings": True}
)


def arms(folder: Path, python: str | None) -> dict[str, Callable[[], Backend]]:
    def model():
        return load_policy(folder, dtype=DTYPE, device=DEVICE)

    found: dict[str, Callable[[], Backend]] = {}
    for size in BATCHES:
        found[f"transformers, static, {size} rows"] = lambda size=size: TransformersBackend(
            model(), pad_id=0, batch_size=size
        )
        found[f"transformers, continuous, {size} rows"] = lambda size=size: ContinuousBackend(model(), rows=size)
    if python is not None or importlib.util.find_spec("vllm") is not None:
        found["vllm"] = lambda: VllmBackend(
            folder,
            None,
            dtype=DTYPE,
            device=DEVICE.type,
            python=python,
            log=folder.parent / "vllm.log",
            # beside the other arms' models
            options={"gpu_memory_utilization": 0.5} if GPU else {},
        )
    return found


def main() -> None:
    print_machine()
    draw = random.Random(0)
    size = SHAPE["vocab_size"]
    ends = draw.sample(range(size), size // 100)
    items = [Item([draw.randrange(size) for _ in range(draw.randrange(20, 201))], at) for at in range(PROMPTS)]
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room) / "model"
        torch.manual_seed(0)
        weights = torch.bfloat16 if GPU else torch.float32
        LlamaForCausalLM(LlamaConfig(**SHAPE)).to(weights).save_pretrained(folder)
        backends, before = {}, {}
        longest = max(items, key=lambda item: len(item.prompt_ids))
        for name, opened in arms(folder, sys.argv[1] if len(sys.argv) > 1 else None).items():
            began = time.monotonic()
            backends[name] = opened()
            list(backends[name].generate([longest], SAMPLING, end_ids=ends))
            before[name] = time.monotonic() - began
        rates: dict[str, list[float]] = {name: [] for name in backends}
        for number in range(1 + ROUNDS):
            for name, backend in backends.items():
                began = time.monotonic()
                tokens = sum(len(each.token_ids or ()) for _, each in backend.generate(items, SAMPLING, end_ids=ends))
                if number:
                    rates[name].append(tokens / (time.monotonic() - began))
        for backend in backends.values():
            backend.close()
    print(f"{'backend':<38}{'seconds before':>16}{'tokens/s':>12}")
    for name in backends:
        print(f"{name:<38}{before[name]:>16.1f}{statistics.median(rates[name]):>12,.0f}")


if __name__ == "__main__":
    main()
