"""How much of each dataset goes into a mixture, and in which order its rows stand."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cdpo.errors import StepError


def share_of(parts: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> list[float]:
    """The share of each dataset that is taken, in (0, 1]; `sizes` are the rows of their training splits.

    With proportions the mixture is as large as the smallest dataset allows. Raises StepError where a dataset has fewer
    than `n` rows.
    """
    if any("proportion" in part for part in parts):
        total = min(size / part["proportion"] for part, size in zip(parts, sizes, strict=True))
        return [part["proportion"] * total / size for part, size in zip(parts, sizes, strict=True)]
    for part, size in zip(parts, sizes, strict=True):
        if part.get("n", 0) > size:
            raise StepError(f"the mixture takes {part['n']} rows of {part['dataset']}, which has {size} to train on")
    return [part.get("n", size) / size for part, size in zip(parts, sizes, strict=True)]


def taken(rows: Sequence[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """The first of `rows`, at least one, which PREP has put into a random order: a fair sample, and those of a smaller
    share are among those of a larger one."""
    return list(rows[: max(1, round(share * len(rows)))])


def in_order(rows: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows in an order that only their content and the seed decide."""

    def rank(row: Mapping[str, Any]) -> str:
        content = json.dumps([row["dataset"], row["prompt"], row["chosen"], row["rejected"]])
        return hashlib.sha256(f"{seed}\x1fmixture\x1f{content}".encode()).hexdigest()

    return sorted(rows, key=rank)
