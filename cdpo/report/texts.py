"""Reads the texts of runs: all that belongs to one prompt; of all prompts, only their beginnings, or what is asked."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.files import reading_parquet
from cdpo.report.by_prompt import answers
from cdpo.report.reading import RunScores
from cdpo.report.words import share_different
from cdpo.score.scores import FILE, SAMPLES, column_name

if TYPE_CHECKING:
    import pandas as pd
#: of a response, without its tokens and their probabilities
RESPONSE = ("prompt", "chosen", "sample", "temperature", "response", "response_tokens", "finish_reason", "split")
#: rows that are looked through at once
PART = 1024
#: characters of a prompt that stand for it in a list
OPENING = 120


def responses(run: RunScores, prompt_id: str) -> list[dict[str, Any]]:
    """The run's responses to one prompt, by the names of RESPONSE; none where it has none."""
    file = answers(run)
    return [] if file is None else _rows(file, prompt_id, RESPONSE)


def rejected(run: RunScores, split: str, prompt_id: str) -> list[dict[str, str]] | None:
    """The data's rejected response to a prompt, as messages; None where the run's data has none."""
    for gives, folder in reversed(run.folders):
        file = folder / "out" / f"{split}.parquet"
        if gives == "data" and file.exists():
            rows = _rows(file, prompt_id, ("rejected",))
            if rows and rows[0].get("rejected"):
                found: list[dict[str, str]] = rows[0]["rejected"]
                return found
    return None


def scores(run: RunScores, prompt_id: str, sample: int) -> dict[str, tuple[float | None, float | None]]:
    """By reward (`reward`, `gold`, `reward/PP` of several): the score of one response, and that of the data's chosen
    one; None for no score."""
    labelled: list[tuple[str | None, Path]] = [(label, each.folder) for label, each in run.scored.items()]
    found: dict[str, tuple[float | None, float | None]] = {}
    for label, folder in labelled or [(None, folder) for gives, folder in run.folders if gives == "scores"]:
        several = folder / "out" / SAMPLES
        rows = _rows(several if several.exists() else folder / "out" / FILE, prompt_id)
        own = [row for row in rows if row.get("sample", sample) == sample]
        for name in own[0] if own else ():
            if name.endswith("_generated"):
                kind = name.removesuffix("_generated")
                values = own[0][name], own[0].get(f"{kind}_chosen")
                found.setdefault(column_name(kind, label if kind != "gold" else None), values)
    return found


def verdicts(folder: Path, prompt_id: str, sample: int) -> list[dict[str, Any]]:
    """What a judge's step asked about one response: {order, verdict, first, second, rating, why, answer, model}."""
    columns = ("sample", "order", "verdict", "first", "second", "rating", "why", "answer", "model")
    return [
        row for row in _rows(folder / "out" / "verdicts.parquet", prompt_id, columns) if row["sample"] in (sample, None)
    ]


def openings(run: RunScores) -> dict[str, str]:
    """By prompt: how its last message begins."""
    import pyarrow.compute as pc

    found: dict[str, str] = {}
    for part in _parts(answers(run), ("prompt_id", "prompt")):
        messages = part["prompt"]
        last = pc.subtract(pc.add(messages.offsets[:-1], pc.list_value_length(messages)), 1)
        words = pc.utf8_slice_codeunits(pc.struct_field(messages.values.take(last), "content"), 0, OPENING)
        found |= zip(part["prompt_id"].to_pylist(), words.to_pylist(), strict=True)
    return found


def holding(runs: list[RunScores], text: str) -> set[str]:
    """The prompts where one of the runs' responses, or a message of the prompt, holds `text`, in whatever case."""
    import pyarrow.compute as pc

    found: set[str] = set()
    for run in runs:
        for part in _parts(answers(run), ("prompt_id", "prompt", "response")):
            here = pc.fill_null(pc.match_substring(part["response"], text, ignore_case=True), False)
            found |= set(part["prompt_id"].filter(here).to_pylist())
            said = pc.struct_field(pc.list_flatten(part["prompt"]), "content")
            rows = pc.list_parent_indices(part["prompt"]).filter(
                pc.fill_null(pc.match_substring(said, text, ignore_case=True), False)
            )
            found |= set(part["prompt_id"].take(rows).to_pylist())
    return found


def different(a: RunScores, b: RunScores) -> "pd.Series":
    """By prompt that both answered: how different the words of their first responses are, from 0 to 1."""
    import pandas as pd

    ours, theirs = (_first_responses(run) for run in (a, b))
    shared = [each for each in ours if each in theirs]
    return pd.Series([share_different(ours[each], theirs[each]) for each in shared], index=shared, dtype=float)


def _first_responses(run: RunScores) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in _parts(answers(run), ("prompt_id", "response")):
        for each, text in zip(part["prompt_id"].to_pylist(), part["response"].to_pylist(), strict=True):
            found.setdefault(each, text or "")
    return found


def _rows(file: Path, prompt_id: str, columns: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """The rows of one prompt, in the file's order, with those of `columns` that the file has."""
    import pyarrow.compute as pc

    with reading_parquet(file) as opened:
        names = opened.schema_arrow.names
    wanted = [name for name in columns or names if name in names]
    found: list[dict[str, Any]] = []
    for batch in _parts(file, list(dict.fromkeys(["prompt_id", *wanted]))):
        found += batch.filter(pc.equal(batch["prompt_id"], prompt_id)).select(wanted).to_pylist()
    return found


def _parts(file: Path | None, columns: Sequence[str]) -> Iterator[Any]:
    """The rows of a parquet file a part at a time: all its texts at once may be hundreds of megabytes."""
    if file is not None:
        with reading_parquet(file) as opened:
            yield from opened.iter_batches(batch_size=PART, columns=list(columns), use_threads=False)
