"""`chosen.parquet`: the rewards of a dataset's chosen responses, one row per prompt."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cdpo.errors import StepError

FILE = "chosen.parquet"


def write_chosen(folder: Path, split: str, rows: Sequence[tuple[str, str, float | None]]) -> None:
    """Write `folder`/chosen.parquet: `split`, `prompt_id`, `content` (text) and `reward` (float64, null: no score) from
    (prompt_id, content, reward); `content` is that of cdpo/score/paired.py."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"prompt_id": pa.string(), "content": pa.string(), "reward": pa.float64()}
    arrays = {name: pa.array([row[at] for row in rows], kind) for at, (name, kind) in enumerate(columns.items())}
    pq.write_table(pa.table({"split": pa.array([split] * len(rows), pa.string()), **arrays}), folder / FILE)


def read_chosen(folder: Path, wanted: Mapping[tuple[str, str], str]) -> dict[str, float | None]:
    """The rewards by `content`, None where there is none; `wanted` tells the content for (split, prompt_id).

    Raises StepError where a prompt is not there, or with another response.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / FILE).to_pylist()
    there = {(row["split"], row["prompt_id"]): row["content"] for row in rows}
    for (split, prompt_id), content in wanted.items():
        if there.get((split, prompt_id)) != content:
            what = "no score" if (split, prompt_id) not in there else "the score of another text"
            raise StepError(
                f"{folder} has {what} for the chosen response to {prompt_id} of {split!r}: it was not made for these "
                "responses"
            )
    return {row["content"]: row["reward"] for row in rows}
