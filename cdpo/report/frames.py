"""`cdpo.results()` and `cdpo.responses()`: what a store holds as pandas data frames."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cdpo.errors import UsageError
from cdpo.report.collect import collect
from cdpo.report.groups import find_named
from cdpo.report.reading import Reader
from cdpo.report.tables import selected
from cdpo.score.scores import FILE, SAMPLES, column_name
from cdpo.store import Store

if TYPE_CHECKING:
    import pandas as pd


def results(tag: str | None = None, store: str | Path | None = None, select: bool = True) -> "pd.DataFrame":
    """One row per run: what it is, its parameters, and for each metric `NAME`, `NAME/low`, `NAME/high`, `NAME/n`.

    `store` is the store's folder; by default `$CDPO_STORE`, or `./.cdpo`. Where a tasks file has `select`, only runs of
    the chosen values are shown, and the column `selected` says how they were chosen; `select=False` shows all.
    """
    import pandas as pd

    collected = collect(_root(store), tag, select)
    how = {(each["tag"], name): selected(each) for each in collected["selections"] for name in each["shown"]}
    rows = []
    for run in collected["runs"]:
        row = {name: run[name] for name in ("name", "tag", "seed", "method", "model", "dataset", "state")}
        if how:
            row["selected"] = how.get((run["tag"], run["name"]))
        row |= run["params"]
        for name, value in run["metrics"].items():
            row |= {name: value["mean"], **{f"{name}/{part}": value[part] for part in ("low", "high", "n")}}
        rows.append(row)
    return pd.DataFrame(rows)


def responses(run: str, tag: str | None = None, store: str | Path | None = None) -> "pd.DataFrame":
    """What a run answered, one row per response, with its scores beside it where there are any: `reward_generated`, or
    `reward_generated/PP` of each of several rewards.

    Raises UsageError for a run that is unknown, ambiguous, or has generated nothing yet.
    """
    import pandas as pd

    reader = Reader(Store(_root(store)))
    chosen = find_named(run, [reader.run(ref) for ref in reader.store.read_refs(tag)], "run")
    made: dict[str, Path] = {gives: folder for gives, folder in chosen.folders if gives in ("responses", "scores")}
    if "responses" not in made:
        raise UsageError(f"the run {chosen.label} has generated nothing yet; `cdpo status` says what is missing")
    table = pd.read_parquet(made["responses"] / "out" / "responses.parquet")
    scored: dict[str | None, Path] = {label: each.folder for label, each in chosen.scored.items()}
    if "scores" in made and not scored:
        scored = {None: made["scores"]}
    for label, folder in scored.items():
        several = (folder / "out" / SAMPLES).exists()
        scores = pd.read_parquet(folder / "out" / (SAMPLES if several else FILE))
        scores = scores.rename(columns={name: column_name(name, label) for name in scores.columns})
        named = ["split", "prompt_id", "sample"] if several else ["split", "prompt_id"]
        # gold is the same in all of them
        scores = scores[[name for name in scores.columns if name in named or name not in table.columns]]
        table = table.merge(scores, on=named, how="left", validate="one_to_one")
    return table


def _root(store: str | Path | None) -> Path:
    return Path(store or os.environ.get("CDPO_STORE") or ".cdpo")
