"""The numbers of a step's `scores.parquet`, row by row."""

import hashlib
from pathlib import Path
from typing import Any

from cdpo.files import reading_parquet
from cdpo.stats.paired import Column


class RowIds:
    """Gives one tuple for equal rows, whatever step they come from: comparing them is a comparison of addresses, and
    a thousand steps over the same prompts hold their ids once."""

    def __init__(self) -> None:
        self._by_bytes: dict[bytes, Any] = {}
        self._by_ids: dict[tuple[str, ...], tuple[str, ...]] = {}

    def text(self, column: Any) -> Any:
        """An arrow column of strings as a numpy array of them: made once for equal bytes."""
        import numpy as np

        digest = hashlib.blake2b(digest_size=16)
        for chunk in column.chunks:
            # a chunk of a table just read begins at its buffers' beginning
            for buffer in chunk.buffers():
                digest.update(b"-" if buffer is None else buffer)
            digest.update(f"{len(chunk)} {chunk.offset};".encode())
        found = self._by_bytes.get(digest.digest())
        if found is None:
            found = self._by_bytes[digest.digest()] = np.array(column.to_pylist(), dtype=object)
        return found

    def one(self, ids: Any) -> tuple[str, ...]:
        found = tuple(ids)
        return self._by_ids.setdefault(found, found)


def read_columns(path: Path, wanted: set[str], ids: RowIds) -> dict[str, dict[str, Column]]:
    """The columns of `wanted` that there are, by split; rows without a finite value are left out of a column."""
    import numpy as np

    with reading_parquet(path) as file:
        names = [name for name in file.schema_arrow.names if name in wanted]
        table = file.read(columns=["split", "prompt_id", *names], use_threads=False)
    splits, rows = ids.text(table["split"]), ids.text(table["prompt_id"])
    numbers = {name: table[name].to_numpy().astype(np.float64) for name in names}
    found: dict[str, dict[str, Column]] = {}
    for split in dict.fromkeys(splits.tolist()):
        here = splits == split
        columns = found[split] = {}
        for name, values in numbers.items():
            kept = here & np.isfinite(values)
            if kept.any():
                columns[name] = Column(ids.one(rows[kept]), values[kept])
    return found
