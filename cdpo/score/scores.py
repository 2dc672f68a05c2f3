"""`scores.parquet`: one row per prompt, a column per score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "scores.parquet"


def win(generated: float, chosen: float) -> float:
    """1 where the generated response scores higher, 0 where it scores lower, 0.5 for a tie."""
    return 0.5 if generated == chosen else float(generated > chosen)


def add_scores(rows: Sequence[dict[str, Any]], name: str, wins: str, scores: Mapping[int, tuple[float, float]]) -> None:
    """Add `<name>_generated`, `<name>_chosen` and `wins` to `rows`; None in a row that has no score.

    `scores` holds (of the generated response, of the chosen one) by position.
    """
    for at, row in enumerate(rows):
        pair = scores.get(at)
        row[f"{name}_generated"], row[f"{name}_chosen"] = pair or (None, None)
        row[wins] = None if pair is None else win(*pair)


def write_scores(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `folder`/scores.parquet: `split` and `prompt_id` as text, all else float64; null: no score."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = ("split", "prompt_id")
    numbers = [name for name in rows[0] if name not in texts]
    schema = pa.schema([(name, pa.string()) for name in texts] + [(name, pa.float64()) for name in numbers])
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), folder / FILE)
