"""Which rows a model can take: tokenised, counted, and refused when too many are unusable. Nothing is truncated."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdpo.data.tokens import ControlTokenError, encode
from cdpo.errors import StepError

TOO_LONG = "longer than max_length"
CONTROL_TOKEN = "spells a special token"
NO_ROOM = "no room for max_new_tokens"


@dataclass
class LengthReport:
    """How the rows of a split fit a model."""

    max_length: int
    rows: int = 0
    #: unusable rows by cause
    dropped: Counter[str] = field(default_factory=Counter)
    #: tokens of the longest prompt and response together, usable or not
    longest: int = 0

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
    for row in rows:
        encoded = _encoded(row, tokenizer, report, room or 0)
        if encoded is not None:
            kept.append({**encoded, **{name: row[name] for name in carry}})
    if not kept or report.share > max_dropped:
        causes = ", ".join(f"{count} {cause}" for cause, count in sorted(report.dropped.items())) or "there are none"
        raise StepError(
            f"{report.rows - len(kept)} of {report.rows} rows of {split!r} are unusable for this model: {causes} "
            f"(max_length {max_length}, the longest row has {report.longest} tokens); "
            f"at most {max_dropped:.1%} may be. "
            f"Raise max_length up to the model's context, choose a model with a longer one, "
            f"{'lower max_new_tokens, ' if report.dropped[NO_ROOM] else ''}or raise max_dropped"
        )
    return kept, report


def _encoded(row: Mapping[str, Any], tokenizer: Any, report: LengthReport, room: int) -> dict[str, Any] | None:
    report.rows += 1
    try:
        prompt_ids, chosen_ids = encode(tokenizer, row["prompt"], row["chosen"])
        rejected_ids = encode(tokenizer, row["prompt"], row["rejected"]).response_ids if row["rejected"] else []
    except ControlTokenError:
        report.dropped[CONTROL_TOKEN] += 1
        return None
    length = len(prompt_ids) + max(len(chosen_ids), len(rejected_ids))
    report.longest = max(report.longest, length)
    if length > report.max_length:
        report.dropped[TOO_LONG] += 1
        return None
    if len(prompt_ids) + room > report.max_length:
        report.dropped[NO_ROOM] += 1
        return None
    return {
        "prompt_id": row["prompt_id"],
        "prompt_ids": prompt_ids,
        "chosen_ids": chosen_ids,
        "rejected_ids": rejected_ids,
    }
