"""The main job on human data: a tiny model, made from scratch, through SFT, RM, DPO, GEN and EVALREWARD on hh-rlhf.

    python benchmarks/hh_rlhf.py DATA.jsonl.gz [FOLDER]

DATA is hh-rlhf's harmless-base test file, read by the AH rule; the tokenizer is learned from its dialogues. Prints
losses before and after, reward accuracy and wall times, and leaves the project (with its store) in FOLDER.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _machine import print_machine

TASKS = """\
tag: hh
pipelines: [SFT, RM, DPO, GEN, EVALREWARD]
model: [tiny_hh]
dataset: [hh]
tasks:
  - {{pipeline: SFT}}
  - {{pipeline: DPO, beta: [0.1], learning_rate: 5e-4, max_steps: {steps}, batch_size: 32, max_dropped: 0.1}}
SFT: {{learning_rate: 2e-3, max_steps: {sft_steps}, batch_size: 32, max_dropped: 0.1}}
RM: {{learning_rate: 1e-3, max_steps: {steps}, batch_size: 32, max_dropped: 0.1}}
GEN: {{max_new_tokens: 64, limit: {limit}, max_dropped: 0.1}}
EVALREWARD: {{max_dropped: 0.2}}

"""


def write_project(
    folder: Path, data: Path, sft_steps: int = 120, steps: int = 40, limit: int = 200, rows: int | None = None
) -> None:
    """The project in `folder`: a tiny model made for the text of `data`, name tables and tasks.yaml.

    `rows` are taken of the source (None: all); the other sizes are optimiser steps and answered prompts.
    """
    from cdpo.data.tiny import build_tiny_for_text

    with gzip.open(data, "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["chosen"] for line in stream]
    build_tiny_for_text(texts, folder / "tiny_hh")
    cut = "" if rows is None else f", limit: {rows}"
    for name, text in {
        "models/names.yaml": "tiny_hh: ./tiny_hh\n",
        "datasets/preprocess.yaml": f"hh: {{path: {json.dumps(str(data))}, rule: AH{cut}}}\n",
        # dialogues differ in length: few at a time, which are sorted, waste little on padding, and change no result
        "devices.yaml": "pipelines: {SFT: {micro_batch: 4}, RM: {micro_batch: 4}, DPO: {micro_batch: 4}}\n",
        "tasks.yaml": TASKS.format(steps=steps, sft_steps=sft_steps, limit=limit),
    }.items():
        path = folder / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def figures(folder: Path) -> list[str]:
    """One line per finished step: seconds, and what its manifest says of before and after."""
    lines = []
    for path in sorted((folder / ".cdpo" / "steps").glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        summary = manifest["summary"]
        kept = {name: summary[name] for name in ("before", "after", "kept", "dropped", "rows") if name in summary}
        more = {name: value for name, value in summary.items() if name.endswith("/mean") or name.startswith("winrate")}
        lines.append(f"{manifest['pipeline']:<11}{manifest['seconds']:7.1f} s  {json.dumps({**kept, **more})}")
    return lines


def main() -> None:
    data = Path(sys.argv[1]).resolve()
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="cdpo-hh-")).resolve()
    print_machine()
    write_project(folder, data)
    start = time.monotonic()
    for command in ("prep", "execute", "results"):
        subprocess.run([sys.executable, "-m", "cdpo.cli", command], cwd=folder, check=True)
    print(f"\nwall time {time.monotonic() - start:.0f} s, in {folder}")
    print("\n".join(figures(folder)))


if __name__ == "__main__":
    main()
