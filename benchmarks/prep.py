"""Preparing 100,000 pairs, and counting them in tokens, beside `datasets.map` doing the same on all cores.

    python benchmarks/prep.py [PAIRS [REPEATS]]

Pairs of about 300 tokens, made of random words, for a tiny model with a byte-level tokenizer. `cdpo prep` reads,
converts, splits and writes them, counts every row in tokens and looks at it; then once more. The other arm loads the
same file with `datasets`, and has `datasets.map` render and count prompt and both responses with all cores, without its
cache. Wall-clock seconds; the arms take turns, and medians of all turns are compared.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from _machine import print_machine

from cdpo.data.tiny import build_tiny_for_text

TASKS = """\
tag: prep
pipelines: [SFT]
model: [./model]
dataset: [./pairs.jsonl]
tasks: [{pipeline: SFT, max_length: 512}]
"""
#: words of a prompt and of each response: about 100 tokens each
WORDS = 60

OTHER = """
import sys
from datasets import disable_caching, load_dataset
from transformers import AutoTokenizer
disable_caching()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])

def count(row):
    opened = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}], tokenize=False,
                                           add_generation_prompt=True)
    found = {"prompt_tokens": len(tokenizer(opened, add_special_tokens=False).input_ids)}
    for side in ("chosen", "rejected"):
        whole = tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]},
                                               {"role": "assistant", "content": row[side]}], tokenize=False)
        found[side + "_tokens"] = len(tokenizer(whole[len(opened):], add_special_tokens=False).input_ids)
    return found

rows = load_dataset("json", data_files=sys.argv[2], split="train", cache_dir=sys.argv[3])
found = rows.map(count, num_proc=int(sys.argv[4]), load_from_cache_file=False)
print(sum(found["prompt_tokens"]) + sum(found["chosen_tokens"]) + sum(found["rejected_tokens"]))
"""


def timed(words: list[str], folder: Path) -> float:
    began = time.monotonic()
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def main(pairs: int, repeats: int) -> None:
    print_machine()
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(2, 9))) for _ in range(5000)]

    def text() -> str:
        return " ".join(draw.choices(vocabulary, k=WORDS))

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "configs").mkdir()
        (folder / "configs" / "tasks.yaml").write_text(TASKS)
        build_tiny_for_text([text() for _ in range(500)], folder / "model", vocab_size=2000)
        with open(folder / "pairs.jsonl", "w") as stream:
            for _ in range(pairs):
                stream.write(json.dumps({"prompt": text(), "chosen": text(), "rejected": text()}) + "\n")
        prep = [sys.executable, "-m", "cdpo.cli", "prep"]
        cores = len(os.sched_getaffinity(0))
        words = [sys.executable, "-c", OTHER, "model", "pairs.jsonl", str(folder / "cache"), str(cores)]
        first, second, other = [], [], []
        for _ in range(repeats):
            shutil.rmtree(folder / ".cdpo", ignore_errors=True)
            first.append(timed(prep, folder))
            second.append(timed(prep, folder))
            other.append(timed(words, folder))
            shutil.rmtree(folder / "cache")
        page = json.loads(next((folder / ".cdpo" / "preflight").iterdir()).read_text())[0]
    print(f"{pairs:,} pairs, a row has {page['tokens']['row'][0]} tokens in the median")
    print(f"cdpo prep: {shown(first)}; again: {shown(second)}; datasets.map on {cores} cores: {shown(other)}")
    print(f"datasets.map / cdpo prep: {median(other) / median(first):.2f}")


def shown(seconds: list[float]) -> str:
    return f"{median(seconds):.1f} s ({', '.join(f'{each:.1f}' for each in seconds)})"


if __name__ == "__main__":
    main(*(int(given) for given in (*sys.argv[1:], *("100000", "3")[len(sys.argv) - 1 :])))
