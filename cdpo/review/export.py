"""Reviewed rows as data to train on, in TRL's forms.

Pairs become `prompt`, `chosen`, `rejected` (messages), where the majority of a row's reviewers prefers one response:
as it stands where they prefer the chosen one, the other way round where they prefer the rejected one. Single responses
become `prompt`, `completion`, `label` (true for good), TRL's unpaired preferences.
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdpo.data.messages import assistant
from cdpo.errors import UsageError
from cdpo.judge.agreement import majority
from cdpo.review import rows as reading
from cdpo.review.acts import CHOSEN, GOOD, REJECTED, TIE, Place, Review, Reviews, votes
from cdpo.review.sources import Source

#: by what a file's name ends in
FORMS = (".jsonl", ".parquet")

#: why a reviewed row is not exported, in words
FLAGGED = "flagged"
TIED = "a tie"
BOTH_BAD = "both bad"
NO_MAJORITY = "no majority"
NO_VOTE = "no vote yet"
CHANGED = "its text is another now"
GONE = "no longer there"


@dataclass
class Exported:
    #: split -> rows
    splits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: reviewed rows that are left out, by cause
    left_out: Counter[str] = field(default_factory=Counter)
    #: pairs whose responses changed places
    swapped: int = 0

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for split in self.splits.values() for row in split]

    def told(self) -> str:
        """In one sentence."""
        out = ", ".join(f"{count} {why}" for why, count in sorted(self.left_out.items()))
        swapped = f", {self.swapped} of them the other way round than in the data" if self.swapped else ""
        count = len(self.rows)
        what = f"{count} row{'' if count == 1 else 's'}{swapped}"
        return f"{what}; left out: {out}" if out else what


def export(source: Source, reviews: Reviews, *, keep_flagged: bool = False, splits: Sequence[str] = ()) -> Exported:
    """The rows that reviewers decided, of `splits` (all without any), in the data's order. Rows that somebody flagged
    are left out unless `keep_flagged`."""
    made = Exported()
    files = source.splits()
    for split in dict.fromkeys([*files, *(place.split for place in reviews)]):
        if splits and split not in splits:
            continue
        reviewed: dict[str, list[Place]] = {}
        for place in reviews:
            if place.split == split:
                reviewed.setdefault(place.row, []).append(place)
        if not reviewed:
            continue
        there = reading.positions(reading.overview(files[split]), list(reviewed)) if split in files else {}
        made.left_out[GONE] += len(reviewed.keys() - there.keys())
        ordered = sorted(there, key=there.__getitem__)
        rows = reading.rows_at(files[split], [there[row] for row in ordered]) if ordered else []
        kept = []
        for name, row in zip(ordered, rows, strict=True):
            of_row = reviews.get(Place(split, name, reading.content_hash(row)))
            if of_row is None:
                made.left_out[CHANGED] += 1
            elif (example := _example(row, of_row, keep_flagged, made)) is not None:
                kept.append(example)
        if kept:
            made.splits[split] = kept
    made.left_out = +made.left_out
    return made


def _example(
    row: Mapping[str, Any], of_row: dict[str, Review], keep_flagged: bool, made: Exported
) -> dict[str, Any] | None:
    """The row as it is exported; None, counted by cause, where it is not."""
    given = votes(of_row)
    vote = majority(given)
    if not keep_flagged and any(review.flag for review in of_row.values()):
        made.left_out[FLAGGED] += 1
    elif vote is None:
        made.left_out[NO_MAJORITY if given else NO_VOTE] += 1
    elif reading.is_single(row):
        response = [assistant(row["response"])] if reading.is_answer(row) else row["chosen"] or []
        return {"prompt": row["prompt"], "completion": response, "label": vote == GOOD}
    elif vote in (CHOSEN, REJECTED):
        better, worse = (CHOSEN, REJECTED) if vote == CHOSEN else (REJECTED, CHOSEN)
        made.swapped += vote == REJECTED
        return {"prompt": row["prompt"], "chosen": row[better], "rejected": row[worse]}
    else:
        made.left_out[TIED if vote == TIE else BOTH_BAD] += 1
    return None


def as_bytes(rows: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """The rows as a file, `form` one of FORMS. Raises UsageError for no rows: nobody could read that."""
    if not rows:
        raise UsageError("nothing to export: no reviewed row has a majority for a response yet")
    if form == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([(name, pa.bool_() if name == "label" else messages) for name in rows[0]])
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), stream, compression="zstd")
    return stream.getvalue()


def write(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Raises UsageError for a name that ends in none of FORMS, and for a file that is there already."""
    form = path.suffix.lower()
    if form not in FORMS:
        raise UsageError(f"{path}: name a file that ends in {' or '.join(FORMS)}")
    if path.exists():
        raise UsageError(f"{path} is there already and is never written over; name another file")
    content = as_bytes(rows, form)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def said(reviews: Reviews) -> list[dict[str, Any]]:
    """What every reviewer says of every row, one entry each, by split, row and reviewer."""
    places = sorted(reviews, key=lambda place: (place.split, place.row, place.content))
    return [
        {
            "split": place.split,
            "row": place.row,
            "content": place.content,
            "reviewer": who,
            "vote": review.vote,
            "flag": review.flag,
            "note": review.note,
            "time": review.time,
        }
        for place in places
        for who, review in sorted(reviews[place].items())
    ]
