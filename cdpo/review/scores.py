"""What rewards and judges said of the responses of a run, row by row."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.errors import DamagedFile
from cdpo.files import reading_parquet
from cdpo.pipeline import metric_name, pipelines
from cdpo.review.rows import SAMPLE, Overview
from cdpo.score.scores import FILE, SAMPLES
from cdpo.store import Store
from cdpo.store.names import short

if TYPE_CHECKING:
    import numpy as np

#: kinds of resources that hold a number for every response
_SCORES = ("scores", "verdicts")


def scores_of(store: Store, ref: Mapping[str, Any], key: str, view: Overview) -> dict[str, "np.ndarray"]:
    """Metric -> float64, one per row of `view`, NaN where it has none: of all finished steps of the run `ref` that
    scored what the step `key` answered. One that cannot be read is as one that is not finished."""
    finished, known = store.finished(), pipelines()
    found: dict[str, np.ndarray] = {}
    for each in ref["steps"]:
        folder = finished.get(short(each))
        if folder is None or folder.parent.name not in known or known[folder.parent.name].gives not in _SCORES:
            continue
        try:
            manifest = store.manifest(folder)
        except (OSError, DamagedFile):
            continue
        if short(str((manifest.get("inputs") or {}).get("responses", {}).get("step", key))) != short(key):
            continue
        metrics = {**known[folder.parent.name].metrics, **(manifest.get("summary") or {}).get("metrics", {})}
        label = ref.get("labels", {}).get(each)
        columns = _columns(folder / "out", set(metrics.values()), view)
        for metric, column in metrics.items():
            if column in columns:
                found[metric_name(metric, label)] = columns[column]
    return found


def _columns(folder: Path, wanted: set[str], view: Overview) -> dict[str, "np.ndarray"]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    path = next((folder / name for name in (SAMPLES, FILE) if (folder / name).is_file()), None)
    if path is None:
        return {}
    with reading_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if name in wanted]
        by_sample = SAMPLE in file.schema_arrow.names
        table = file.read(columns=["prompt_id", *([SAMPLE] if by_sample else []), *names], use_threads=False)
    ids = table["prompt_id"].combine_chunks()
    if by_sample:
        number = table[SAMPLE].combine_chunks()
        named = pc.binary_join_element_wise(ids, pc.cast(number, pa.string()), ":")
        ids, asked = pc.if_else(pc.greater(number, 0), named, ids), view.ids
    else:  # a mean over the samples of a prompt
        asked = pc.list_element(pc.split_pattern(view.ids, ":"), 0)
    places = pc.index_in(asked, value_set=ids).to_numpy(zero_copy_only=False).astype(np.float64)
    there = np.isfinite(places)
    found = {}
    for name in names:
        values = np.full(len(view), np.nan)
        values[there] = table[name].to_numpy().astype(np.float64)[places[there].astype(np.int64)]
        if np.isfinite(values).any():
            found[name] = values
    return found
