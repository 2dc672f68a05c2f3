"""Generating and scoring on human data: cdpo's batches beside plain ones, in CPU seconds.

    python benchmarks/generation.py DATA.jsonl.gz [PROMPTS]

DATA is hh-rlhf's harmless-base test file, on which a tiny model is trained first (see hh_rlhf.py). Generation: greedy
responses to PROMPTS prompts, against transformers' `generate` on batches in the order of the file. Scoring: rewards of
as many dialogues, against batches that are all padded to the longest one; the limit of what sorting can save is the
share of padding there. Rounds are interleaved; what is shown are medians.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _machine import print_machine
from hh_rlhf import write_project
from transformers import AutoModelForSequenceClassification

from cdpo.config.params import SamplingParams
from cdpo.data.prepared import read_split
from cdpo.data.tokens import encode, encode_prompt, end_token_id
from cdpo.generate.backend import Item
from cdpo.generate.transformers_backend import generate
from cdpo.models import load_policy, load_tokenizer
from cdpo.score.reward import score
from cdpo.store import Store

BATCH, NEW_TOKENS, ROUNDS = 32, 64, 3
CPU = torch.device("cpu")


def trained(data: Path, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The SFT model and the rows of `train`."""
    write_project(folder, data)
    for words in (["prep"], ["execute", "--only", "SFT"]):
        subprocess.run([sys.executable, "-m", "cdpo.cli", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    made = {path.parent.name: path / "out" for path in Store(folder / ".cdpo").finished().values()}
    return made["SFT"], read_split(made["PREP"], "train")


def interleaved(*arms: Callable[[], Any]) -> list[tuple[float, Any]]:
    """(median CPU seconds, result) of each arm."""
    seconds: list[list[float]] = [[] for _ in arms]
    results: list[Any] = [None for _ in arms]
    for _ in range(ROUNDS):
        for at, arm in enumerate(arms):
            began = time.process_time()
            results[at] = arm()
            seconds[at].append(time.process_time() - began)
    return [(statistics.median(each), result) for each, result in zip(seconds, results, strict=True)]


def plainly(model: Any, prompts: list[list[int]], end_ids: list[int], pad: int) -> list[list[int]]:
    """transformers' own generate, batch after batch in the order of the prompts."""
    answers = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        width = max(map(len, batch))
        fed = torch.tensor([[pad] * (width - len(ids)) + ids for ids in batch])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch])
        made = model.generate(
            fed,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=end_ids,
            pad_token_id=pad,
        )
        for row in made[:, width:].tolist():
            ends = [at for at, token in enumerate(row) if token in end_ids]
            answers.append(row[: ends[0] + 1] if ends else row)
    return answers


def in_cdpo(model: Any, prompts: list[list[int]], end_ids: list[int], pad: int) -> list[list[int]]:
    sampling = SamplingParams(do_sample=False, max_new_tokens=NEW_TOKENS)
    items = [Item(ids, 0) for ids in prompts]
    found = dict(generate(model, items, sampling, end_ids=end_ids, pad_id=pad, batch_size=BATCH))
    return [found[at].token_ids for at in range(len(prompts))]


def score_padded(model: Any, sequences: list[list[int]], pad: int) -> list[float]:
    width = max(map(len, sequences))
    rewards: list[float] = []
    for start in range(0, len(sequences), BATCH):
        batch = sequences[start : start + BATCH]
        fed = torch.tensor([ids + [pad] * (width - len(ids)) for ids in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch])
        with torch.no_grad():
            rewards += model(input_ids=fed, attention_mask=mask).logits[:, 0].tolist()
    return rewards


def main() -> None:
    torch.set_num_threads(1)
    print_machine()
    data, count = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 512
    with tempfile.TemporaryDirectory(prefix="cdpo-generation-") as folder:
        policy, rows = trained(data, Path(folder))
        tokenizer = load_tokenizer(policy, None, None)
        model = load_policy(policy, device=CPU)
        reward = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1, dtype=torch.float32).eval()
    context, pad = model.config.max_position_embeddings, tokenizer.pad_token_id
    reward.config.pad_token_id = pad
    end_ids = sorted({end_token_id(tokenizer), tokenizer.eos_token_id} - {None})

    prompts = [ids for row in rows if len(ids := encode_prompt(tokenizer, row["prompt"])) <= context - NEW_TOKENS]
    prompts = prompts[:count]
    plain, ours = interleaved(
        lambda: plainly(model, prompts, end_ids, pad), lambda: in_cdpo(model, prompts, end_ids, pad)
    )
    tokens = sum(map(len, plain[1]))
    same = sum(one == other for one, other in zip(plain[1], ours[1], strict=True))
    lengths = sorted(map(len, prompts))
    print(f"\n{len(prompts)} prompts of {lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}")
    print(f"responses: {tokens} tokens; {same} of {len(prompts)} identical")
    for name, (seconds, _) in (("generate in order", plain), ("cdpo", ours)):
        print(f"{name:<20}{tokens / seconds:8.0f} tokens per CPU second")
    print(f"ratio               {plain[0] / ours[0]:8.2f}")

    encoded = (encode(tokenizer, row["prompt"], row["chosen"][0]["content"]) for row in rows)
    texts = [ids for each in encoded if len(ids := [*each.prompt_ids, *each.response_ids]) <= context][:count]
    padded, sorted_ = interleaved(
        lambda: score_padded(reward, texts, pad),
        lambda: dict(score(reward, texts, pad_id=pad, batch_size=BATCH)),
    )
    apart = max(abs(padded[1][at] - sorted_[1][at]) for at in range(len(texts)))
    limit = len(texts) * max(map(len, texts)) / sum(map(len, texts))
    faster = padded[0] / sorted_[0]
    print(f"\n{len(texts)} dialogues, which padded to the longest hold {limit:.2f} times the tokens")
    print(f"scored {faster:.2f} times faster than so: {faster / limit:.2f} of that; scores at most {apart:.1e} apart")


if __name__ == "__main__":
    main()
