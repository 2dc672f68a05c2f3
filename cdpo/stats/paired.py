"""Comparisons by prompt: the same prompts answered by two policies, or by one configuration under several seeds.

Two questions are kept apart. Over prompts, conditional on the seeds that were run: would these trained models differ as
much on other prompts? Over seeds: would other trainings of the same configurations? The first has hundreds of prompts
behind it, the second as many values as there are seeds, and its interval is wide accordingly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cdpo.stats.intervals import Estimate, estimate, t_quantile

#: values that differ by less are equal: the rounding of a model run in another batch is smaller, any finding larger
TIE = 1e-6
OVER_SEEDS = "these prompts; the interval is over seeds"


@dataclass(frozen=True)
class Column:
    """One number per row of a split: `ids` are the rows' prompt_ids, all different, `values` float64, as many."""

    ids: tuple[str, ...]
    values: np.ndarray


class StoredColumn(Column):
    """A column that is read when its rows are asked for, and not kept: `read` gives it."""

    def __init__(self, read: Callable[[], Column]) -> None:
        object.__setattr__(self, "_read", read)

    @property
    def ids(self) -> tuple[str, ...]:
        return self._rows().ids

    @property
    def values(self) -> np.ndarray:
        return self._rows().values

    def _rows(self) -> Column:
        found: Column = self._read()  # type: ignore[attr-defined]
        return found


@dataclass(frozen=True)
class Difference:
    """a - b, paired by prompt."""

    difference: float
    #: None where there are too few prompts, or all differ by the same: then nothing says how much others would
    low: float | None
    high: float | None
    #: two-sided, of the paired t test that the difference is zero; None with fewer than two prompts
    p: float | None
    #: rows that both have
    n: int
    #: rows on which a is higher, equal (within TIE), lower
    wins: int
    ties: int
    losses: int
    #: rows that only one of the two has; they are left out
    unpaired: int
    conditional_on: str


def prompts(ids: Sequence[str]) -> list[str] | None:
    """The prompt of each row, where several rows share one (`3fa2` and `3fa2.1`); None where every row has its own."""
    if not any("." in each for each in ids):
        return None
    return [each.partition(".")[0] for each in ids]


def align(columns: Sequence[Column]) -> tuple[tuple[str, ...], np.ndarray]:
    """The ids that all columns have, in the first one's order, and their values, float64 `[columns, ids]`."""
    first = columns[0]
    if all(column.ids == first.ids for column in columns):
        return first.ids, np.stack([column.values for column in columns])
    places = [{each: at for at, each in enumerate(column.ids)} for column in columns]
    shared = tuple(each for each in first.ids if all(each in place for place in places))
    table = [column.values[[place[each] for each in shared]] for column, place in zip(columns, places, strict=True)]
    return shared, np.stack(table) if shared else np.empty((len(columns), 0))


def average(columns: Sequence[Column]) -> Column:
    """Each row's average over `columns` (one per seed), for the rows that all of them have."""
    ids, table = align(columns)
    return Column(ids, table.mean(axis=0))


def paired(a: Column, b: Column, *, conditional_on: str) -> Difference | None:
    """a - b over the rows that both have: t interval over prompts and the p value of the same t. None for no rows."""
    ids, table = align([a, b])
    if not ids:
        return None
    differences = table[0] - table[1]
    clusters = prompts(ids)
    found = estimate(differences, conditional_on=conditional_on, clusters=clusters)
    return Difference(
        difference=found.mean,
        low=found.low,
        high=found.high,
        p=p_value(found, len(set(clusters or ids))),
        n=len(ids),
        wins=int((differences > TIE).sum()),
        ties=int((abs(differences) <= TIE).sum()),
        losses=int((differences < -TIE).sum()),
        unpaired=len(set(a.ids) ^ set(b.ids)),
        conditional_on=conditional_on,
    )


def standard_error(found: Estimate, groups: int) -> float | None:
    """Of the mean, as its t interval over so many clusters (or rows) has it; None where there is no interval."""
    if found.low is None or found.high is None:
        return None
    return (found.high - found.low) / 2 / t_quantile(groups - 1)


def p_value(found: Estimate, groups: int) -> float | None:
    """Two-sided, of the t test over clusters that the mean is zero; None for fewer than two clusters.

    Where all values are the same there is no interval, and the t test would know no doubt, however few they are: then
    it is that of the sign test.
    """
    error = standard_error(found, groups)
    if not error:  # rounding may leave an interval whose ends are one number
        same = 1.0 if found.mean == 0 else float(2 * 0.5**groups)
        return same if groups > 1 else None
    from scipy.special import stdtr

    return float(2 * stdtr(groups - 1, -abs(found.mean) / error))


def between_seeds(means: Sequence[float]) -> Estimate | None:
    """The mean of one value per seed with its t interval over seeds; None for fewer than two seeds."""
    return estimate(means, conditional_on=OVER_SEEDS) if len(means) > 1 else None
