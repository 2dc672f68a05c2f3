"""Finished steps and runs of a store, made by hand."""

import hashlib

import numpy as np
import pandas as pd

PROMPTS = [f"{at:016x}" for at in range(60)]


def key(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def finish(
    store, pipeline, name, made, *, params=None, inputs=None, seed=0, table=None, file="scores.parquet", summary=None
):
    work = store.work(made)
    (work / "out").mkdir(parents=True)
    if table is not None:
        pd.DataFrame(table).to_parquet(work / "out" / file)
    about = {"params": params or {}, "inputs": inputs or {}, "seed": seed, "seconds": 1.0, "summary": summary or {}}
    store.publish(made, pipeline, name, work, about)
    return made


def record(store, tag, run, method, seed, params, steps, marks=()):
    about = {"seed": seed, "method": method, "model": "tiny", "dataset": "playground", "params": params}
    store.write_ref(tag, run, {**about, "steps": steps, "marks": list(marks)})


def scored_again(store, made, mean):
    """An EVALREWARD step that was set aside and is made again, of the same inputs, with other scores."""
    inputs = store.manifest(store.find(made))["inputs"]
    name = store.find(made).name.rpartition("-")[0]
    store.discard(made)
    table = {"split": "eval", "prompt_id": PROMPTS, "reward_generated": np.random.default_rng().normal(mean, 1, 60)}
    return finish(store, "EVALREWARD", name, made, inputs=inputs, table=table)
