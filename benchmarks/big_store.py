"""A store as large as the viewer must bear: RUNS runs (seeds of configurations) with ROWS responses and scores each.

    python benchmarks/big_store.py FOLDER [RUNS] [ROWS]

Written straight into the store's form, with steps DPO, GEN and EVALREWARD for each run; all runs answer the same
prompts, and their texts are the same file (a hard link), because nobody could tell how fast they are read from them.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cdpo.files import file_sha256, write_json
from cdpo.store import Store

SEEDS = 4
POINTS = 200
EVAL_ROWS = 500


def key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def make(folder: Path, runs: int = 1000, rows: int = 10_000) -> Store:
    store = Store(folder)
    draw = np.random.default_rng(0)
    prompts = [key("prompt", at)[:16] for at in range(rows)]
    texts = folder / "texts.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(_responses(draw, prompts), texts)
    for at in range(runs):
        group, seed = divmod(at, SEEDS)
        params = {"beta": round(0.001 * (1 + group // 10), 4), "learning_rate": round(1e-5 * (1 + group % 10), 7)}
        name = f"DPO_tiny_playground_beta{params['beta']}_learning_rate{params['learning_rate']}_s{seed}"
        keys = [key(kind, at) for kind in ("DPO", "GEN", "EVALREWARD")]
        _finish(store, "DPO", name, keys[0], params, {}, seed, {"scores.parquet": _training(draw, prompts)}, draw)
        gen = {"split": "eval", "temperature": 1.0}
        _finish(store, "GEN", name, keys[1], gen, {"model": {"step": keys[0]}}, seed, {"responses.parquet": texts})
        scores = {"scores.parquet": _scores(draw, prompts)}
        _finish(store, "EVALREWARD", name, keys[2], {}, {"responses": {"step": keys[1]}}, seed, scores)
        about = {"seed": seed, "method": "DPO", "model": "tiny", "dataset": "playground", "marks": []}
        store.write_ref("big", name, {**about, "params": params, "recipe": key(group)[:12], "steps": keys})
    return store


def _finish(store, pipeline, name, made, params, inputs, seed, outputs, draw=None):  # type: ignore[no-untyped-def]
    folder = store.place(pipeline, name, made)
    (folder / "out").mkdir(parents=True)
    described = {}
    for file, what in outputs.items():
        path = folder / "out" / file
        if isinstance(what, Path):
            os.link(what, path)
            described[file] = {"size": path.stat().st_size, "sha256": "0" * 64}
        else:
            pq.write_table(what, path)
            described[file] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    if draw is not None:
        losses = 0.7 * np.exp(-np.arange(POINTS) / 80) + draw.normal(0, 0.02, POINTS)
        lines = [json.dumps({"step": 5 * (at + 1), "loss": float(loss)}) for at, loss in enumerate(losses)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    about = {"key": made, "pipeline": pipeline, "name": name, "version": 1, "params": params, "inputs": inputs}
    manifest = {**about, "seed": seed, "seconds": 60.0, "summary": {}, "outputs": described}
    write_json(folder / "manifest.json", manifest, durable=False)
    write_json(folder / "step.json", about, durable=False)


def _responses(draw: np.random.Generator, prompts: list[str]) -> pa.Table:
    words = np.array([f"word{at}" for at in range(2000)])
    said = [" ".join(words[draw.integers(0, 2000, 60)]) for _ in prompts]
    asked = [[{"role": "user", "content": " ".join(words[draw.integers(0, 2000, 20)])}] for _ in prompts]
    return pa.table(
        {
            "split": ["eval"] * len(prompts),
            "prompt_id": prompts,
            "sample": [0] * len(prompts),
            "prompt": asked,
            "chosen": [[{"role": "assistant", "content": text}] for text in reversed(said)],
            "response": said,
            "prompt_tokens": [20] * len(prompts),
            "response_tokens": [60] * len(prompts),
            "finish_reason": ["stop"] * len(prompts),
        }
    )


def _scores(draw: np.random.Generator, prompts: list[str]) -> pa.Table:
    generated, chosen = draw.normal(1, 1, len(prompts)), draw.normal(0, 1, len(prompts))
    gold, gold_chosen = draw.normal(0.3, 0.4, len(prompts)), draw.normal(0.4, 0.4, len(prompts))
    return pa.table(
        {
            "split": ["eval"] * len(prompts),
            "prompt_id": prompts,
            "reward_generated": generated,
            "reward_chosen": chosen,
            "win_chosen": (generated > chosen).astype(float),
            "gold_generated": gold,
            "gold_chosen": gold_chosen,
            "gold_win_chosen": (gold > gold_chosen).astype(float),
        }
    )


def _training(draw: np.random.Generator, prompts: list[str]) -> pa.Table:
    ids = prompts[:EVAL_ROWS]
    margins = draw.normal(0.5, 1, len(ids))
    columns = {
        "loss": np.log1p(np.exp(-margins)),
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).astype(float),
    }
    return pa.table({"split": ["eval"] * len(ids), "prompt_id": ids, **columns})


if __name__ == "__main__":
    made = make(Path(sys.argv[1]), *map(int, sys.argv[2:4]))
    print(f"{made.root}: {sum(1 for _ in made.finished())} steps")
