"""The final evaluation of a training step: every row of `eval` and `tune`, in `out/scores.parquet`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cdpo.train.batches import Row

Table = Mapping[str, Sequence[float]]


def write_scores(out: Path, tables: Mapping[str, tuple[Sequence[Row], Table]]) -> None:
    """`scores.parquet`: `split, prompt_id`, one float column per metric; `tables`: split -> its rows, their scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for _, table in tables.values() for name in table))
    columns = {
        "split": pa.array([split for split, (rows, _) in tables.items() for _ in rows], pa.string()),
        "prompt_id": pa.array([row["prompt_id"] for rows, _ in tables.values() for row in rows], pa.string()),
    }
    for name in names:
        values = [value for rows, table in tables.values() if rows for value in table[name]]
        columns[name] = pa.array(values, pa.float64())
    pq.write_table(pa.table(columns), out / "scores.parquet")


def means(table: Table) -> dict[str, float]:
    """The mean of every metric over its rows."""
    return {name: sum(values) / len(values) for name, values in table.items()}
