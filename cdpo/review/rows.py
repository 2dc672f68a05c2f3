"""Rows of a parquet file, read as far as they are looked at: numbers of all rows, texts of the rows of a page.

A file may hold a million rows, whose texts would fill the memory: texts are only ever gone through batch by batch.
"""

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.errors import DamagedFile

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

#: rows whose texts are in memory at once
BATCH = 1024
#: rows at most that a search for a text goes through
SEARCHED = 100_000
#: what a reviewer reads of prepared data, and of responses
_PAIR, _ANSWER = ("prompt", "chosen", "rejected"), ("prompt", "response")
#: of responses: the number of the sample, which names a row together with its prompt
SAMPLE = "sample"
#: numbers about how a response was drawn, which say nothing about it
_NOT_MEASURES = (SAMPLE, "seed")
#: columns of what is shown of one row but its texts and numbers
_IDS = "prompt_id"


@dataclass(frozen=True)
class Overview:
    """Every row of a file, as numbers."""

    #: prompt_id, and of responses `prompt_id:sample` for all but the first sample; as many as rows
    ids: "pa.Array"
    #: name -> float64, one per row; NaN where a row has none
    measures: dict[str, "np.ndarray"]

    def __len__(self) -> int:
        return len(self.ids)


def overview(path: Path) -> Overview:
    """Ids, the numeric columns and the lengths in characters of all rows. Raises DamagedFile.

    Lengths: `prompt_chars`, `chosen_chars`, `rejected_chars` or `response_chars`. Of two numeric columns that differ
    by `chosen` and `rejected` in their names alone, a third is their difference, `margin` or `margin(NAME)`.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    file = _open(path)
    schema = file.schema_arrow
    numeric = [f.name for f in schema if _is_number(f.type) and f.name not in _NOT_MEASURES]
    with_sample = [SAMPLE] if is_answer(schema.names) and SAMPLE in schema.names else []
    table = file.read(columns=[_IDS, *with_sample, *numeric], use_threads=False)
    ids = table[_IDS].combine_chunks()
    if with_sample and pc.any(pc.greater(table[SAMPLE], 0)).as_py():
        number = pc.cast(table[SAMPLE].combine_chunks(), pa.string())
        named = pc.binary_join_element_wise(ids, number, ":")
        ids = pc.if_else(pc.greater(table[SAMPLE].combine_chunks(), 0), named, ids)
    measures = {name: _floats(table[name]) for name in numeric}
    del table
    texts = texts_of(schema.names)
    lengths: dict[str, list[np.ndarray]] = {name: [] for name in texts}
    for batch in file.iter_batches(batch_size=BATCH, columns=[*texts], use_threads=False):
        for name in texts:
            lengths[name].append(_lengths(batch.column(name)))
    measured = {f"{name}_chars": np.concatenate(each) if each else np.empty(0) for name, each in lengths.items()}
    measured = {name: values for name, values in measured.items() if not np.isnan(values).all()}
    return Overview(ids, {**measured, **measures, **_margins(measures)})


def margin_names(measures: Mapping[str, Any]) -> list[str]:
    """Those measures that are above 0 where a score prefers the chosen response, below it for the rejected one."""
    return [name for name in measures if name == "margin" or name.startswith("margin(")]


def against(measures: Mapping[str, "np.ndarray"]) -> "np.ndarray | None":
    """Where some score prefers the rejected response (bool by row), by a margin or a bt_prob; None for no such score.
    Of responses: where one says that the dataset's own answer wins (`winrate/...` below 0.5)."""
    import numpy as np

    found = [measures[name] < 0 for name in margin_names(measures)]
    found += [values < 0.5 for name, values in measures.items() if name == "bt_prob" or "winrate" in name.split("/")]
    return np.logical_or.reduce(found) if found else None


def rows_at(path: Path, positions: Sequence[int]) -> list[dict[str, Any]]:
    """The whole rows at `positions` (from 0), in their order, but for the lists of tokens; texts before the last of
    them are gone through, never kept."""
    file = _open(path)
    columns = [name for name in file.schema_arrow.names if name not in ("token_ids", "logprobs")]
    wanted = sorted(set(positions))
    found: dict[int, dict[str, Any]] = {}
    start = 0
    groups = []
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if any(start <= at < start + rows for at in wanted):
            groups.append((group, start))
        start += rows
    for group, begins in groups:
        for batch in file.iter_batches(batch_size=BATCH, row_groups=[group], columns=columns, use_threads=False):
            here = [at for at in wanted if begins <= at < begins + len(batch)]
            if here:
                taken = batch.take([at - begins for at in here]).to_pylist()
                found |= dict(zip(here, taken, strict=True))
            begins += len(batch)
            if wanted[-1] < begins:
                break
    return [found[at] for at in positions]


def row_ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """As in Overview, of rows that were read."""
    return [f"{row[_IDS]}:{row[SAMPLE]}" if is_answer(row) and row.get(SAMPLE) else str(row[_IDS]) for row in rows]


def position(view: Overview, row: str) -> int | None:
    """Where the row with that id stands; None for no such row."""
    import pyarrow.compute as pc

    at = pc.index(view.ids, row).as_py()
    return None if at < 0 else int(at)


def positions(view: Overview, rows: Sequence[str]) -> dict[str, int]:
    """Where the rows with those ids stand; those that are not there are left out."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not rows:
        return {}
    places = np.flatnonzero(pc.is_in(view.ids, value_set=pa.array(list(rows), pa.string())).to_numpy(False))
    return {str(view.ids[int(at)].as_py()): int(at) for at in places}


def search(path: Path, text: str, most: int = SEARCHED) -> "np.ndarray":
    """Which of the first `most` rows hold `text` in the prompt or a response, upper and lower case alike: bool, as many
    as rows were searched."""
    import numpy as np
    import pyarrow.compute as pc

    file = _open(path)
    texts = texts_of(file.schema_arrow.names)
    found: list[np.ndarray] = []
    searched = 0
    for batch in file.iter_batches(batch_size=BATCH, columns=[*texts], use_threads=False):
        hit = np.zeros(len(batch), bool)
        for name in texts:
            counts, contents = _contents(batch.column(name))
            matches = pc.match_substring(contents, text, ignore_case=True).to_numpy(False)
            hit |= _sums(counts, np.asarray(matches, dtype=np.float64)) > 0
        found.append(hit)
        searched += len(batch)
        if searched >= most:
            break
    return np.concatenate(found)[:most] if found else np.zeros(0, bool)


def content_hash(row: Mapping[str, Any]) -> str:
    """16 hex digits of the sha256 of what a reviewer of the row reads: the prompt and the responses."""
    parts = {name: _plain(row.get(name)) for name in texts_of(row)}
    text = json.dumps({name: part for name, part in parts.items() if part is not None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_single(row: Mapping[str, Any]) -> bool:
    """Whether there is one response to vote on, and no pair."""
    return is_answer(row) or not (row.get("chosen") and row.get("rejected"))


def is_answer(names: Container[str]) -> bool:
    """Whether a row, or a file, with these columns is a run's response, and no prepared data; which may have a column
    `response` of its own. `chosen` of responses is the dataset's own answer, for comparison."""
    return "response" in names and "rejected" not in names


def texts_of(names: Container[str]) -> tuple[str, ...]:
    """The columns that a reviewer reads."""
    return _ANSWER if is_answer(names) else _PAIR


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [[each["role"], each["content"]] for each in value]
    return value


def _open(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=True)
    except pa.ArrowInvalid as error:
        raise DamagedFile(f"{path}: cannot be read as parquet ({error}); `cdpo redo` has its step made again") from None


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _floats(column: Any) -> "np.ndarray":
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    return np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)


def _margins(measures: Mapping[str, "np.ndarray"]) -> dict[str, "np.ndarray"]:
    pairs = [(name, name.replace("chosen", "rejected")) for name in measures if "chosen" in name]
    pairs = [(one, other) for one, other in pairs if other in measures]
    # `margin` alone is that of the scores that label the data
    names = {one: "margin" if one == "chosen_score" else f"margin({_bare(one)})" for one, _ in pairs}
    return {names[one]: measures[one] - measures[other] for one, other in pairs if names[one] not in measures}


def _bare(name: str) -> str:
    return name.replace("chosen", "").strip("_/ -") or name


def _contents(column: Any) -> "tuple[np.ndarray, Any]":
    """How many texts each row has, and all of them one after the other; a missing row has none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_list(column.type):
        return pc.is_valid(column).to_numpy(False).astype(np.int64), column.drop_null()
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy(False).astype(np.int64)
    flat = column.flatten()
    if not pa.types.is_struct(flat.type):
        return counts, pa.array([""] * len(flat), pa.string())
    return counts, pc.fill_null(pc.struct_field(flat, "content"), "")


def _lengths(column: Any) -> "np.ndarray":
    """Characters of each row's texts, float64; NaN where the row has no such text."""
    import numpy as np
    import pyarrow.compute as pc

    counts, contents = _contents(column)
    characters = np.asarray(pc.utf8_length(contents).to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.where(counts > 0, _sums(counts, characters), np.nan)


def _sums(counts: "np.ndarray", values: "np.ndarray") -> "np.ndarray":
    """Of `counts[0]` values, then of `counts[1]`, ..."""
    import numpy as np

    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.cumsum(counts)
    return np.asarray(total[ends] - total[ends - counts], dtype=np.float64)
