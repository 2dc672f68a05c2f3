"""Which rows a model can take: tokenised, counted, and refused when too many are unusable. Nothing is truncated."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdpo.data.measure import Tokens
from cdpo.data.tokens import EncodedRow, encode_rows
from cdpo.errors import StepError

TOO_LONG = "longer than max_length"
CONTROL_TOKEN = "spells a special token"
NO_ROOM = "no room for max_new_tokens"

#: rows that are tokenised at once
PART = 500


@dataclass
class LengthReport:
    """How the rows of a split fit a model."""

    max_length: int
    rows: int = 0
    #: unusable rows by cause
    dropped: Counter[str] = field(default_factory=Counter)
    #: tokens of the longest prompt and response together, usable or not
    longest: int = 0

    def count(self, tokens: Tokens | None, room: int) -> bool:
        """Count a row; whether it is usable. A prompt must have `room` for so many tokens behind it."""
        self.rows += 1
        if tokens is None:
            self.dropped[CONTROL_TOKEN] += 1
            return False
        self.longest = max(self.longest, tokens.longest)
        if tokens.longest > self.max_length:
            self.dropped[TOO_LONG] += 1
        elif tokens.prompt + room > self.max_length:
            self.dropped[NO_ROOM] += 1
        else:
            return True
        return False

    def judge(self, max_dropped: float, split: str) -> None:
        """Raise StepError where more than the share `max_dropped` is unusable, or nothing is left."""
        unusable = self.dropped.total()
        if unusable < self.rows and self.share <= max_dropped:
            return
        causes = ", ".join(f"{count} {cause}" for cause, count in sorted(self.dropped.items())) or "there are none"
        raise StepError(
            f"{unusable} of {self.rows} rows of {split!r} are unusable for this model: {causes} "
            f"(max_length {self.max_length}, the longest row has {self.longest} tokens); "
            f"at most {max_dropped:.1%} may be. "
            f"Raise max_length up to the model's context, choose a model with a longer one, "
            f"{'lower max_new_tokens, ' if self.dropped[NO_ROOM] else ''}or raise max_dropped"
        )

    @property
    def share(self) -> float:
        """The share of rows that are unusable, in [0, 1]."""
        return sum(self.dropped.values()) / self.rows if self.rows else 0.0

    def summary(self) -> dict[str, Any]:
        return {
            "max_length": self.max_length,
            "rows": self.rows,
            "dropped": dict(sorted(self.dropped.items())),
            "longest": self.longest,
            "share": round(self.share, 6),
        }


def usable_rows(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    max_length: int,
    max_dropped: float,
    split: str = "train",
    *,
    room: int | None = None,
    carry: Sequence[str] = (),
) -> tuple[list[dict[str, Any]], LengthReport]:
    """The rows that the model can take, as {"prompt_id", "prompt_ids", "chosen_ids", "rejected_ids"} (the last is empty
    where a row has no rejected response).

    A row counts as too long when its prompt with the longer of its responses, end token included, has more than
    max_length tokens, so that every method trains on the same rows; a method that samples `room` tokens after a prompt
    leaves out, too, a row whose prompt with those is longer. Columns that `carry` names go along as they are. Raises
    StepError when more than the share `max_dropped` is unusable, and when nothing is left.
    """
    report = LengthReport(max_length)
    kept = []
    for row, encoded in _encoded(rows, tokenizer):
        if encoded is None:
            report.count(None, 0)
            continue
        tokens = Tokens(*(len(encoded[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")))
        if report.count(tokens, room or 0):
            kept.append({**encoded, **{name: row[name] for name in carry}})
    report.judge(max_dropped, split)
    return kept, report


def _encoded(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any] | None]]:
    """Every row, and what it is as token ids: None where a response spells a special token."""
    for begin in range(0, len(rows), PART):
        part = rows[begin : begin + PART]
        sides = [[row["chosen"]] + ([row["rejected"]] if row["rejected"] else []) for row in part]
        found = encode_rows(tokenizer, [(row["prompt"], given) for row, given in zip(part, sides, strict=True)])
        for row, each in zip(part, found, strict=True):
            yield row, None if each is None else _ids_of(row, each)


def _ids_of(row: Mapping[str, Any], encoded: EncodedRow) -> dict[str, Any]:
    chosen_ids, *rejected_ids = encoded.response_ids
    return {
        "prompt_id": row["prompt_id"],
        "prompt_ids": encoded.prompt_ids,
        "chosen_ids": chosen_ids,
        "rejected_ids": rejected_ids[0] if rejected_ids else [],
    }
