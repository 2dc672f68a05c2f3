"""How far judges agree with each other, with people, and with themselves when the responses change places."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from cdpo.judge.verdicts import FIRST, SECOND, TIE


def majority(labels: Sequence[Hashable]) -> Hashable | None:
    """The label that more than half gave; None where there is none."""
    label, count = Counter(labels).most_common(1)[0] if labels else (None, 0)
    return label if 2 * count > len(labels) else None


def agreement(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """The share of items that both labelled alike. Raises ValueError for none, or where one has more than the other."""
    pairs = list(zip(one, other, strict=True))
    if not pairs:
        raise ValueError("nothing was labelled")
    return sum(a == b for a, b in pairs) / len(pairs)


@dataclass(frozen=True)
class OrderReport:
    """What verdicts in both orders tell of a judge. Shares are of the pairs that have a verdict in both."""

    #: the same response won, or neither did, in both orders
    consistent: float
    #: the verdict went to whichever stood first (second) in both orders
    prefers_first: float
    prefers_second: float
    pairs: int
    missing: int


#: what a verdict is with the responses in their other places
SWAPPED = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}


def both_orders(straight: Sequence[str | None], swapped: Sequence[str | None]) -> OrderReport:
    """`straight` are verdicts with the responses in their places, `swapped` those of the same pairs with the places
    changed, as the judge gave them; None where it gave none. Raises ValueError where no pair has both."""
    all_pairs = list(zip(straight, swapped, strict=True))
    pairs = [(a, b) for a, b in all_pairs if a is not None and b is not None]
    if not pairs:
        raise ValueError("no pair was judged in both orders")

    def share(count: int) -> float:
        return count / len(pairs)

    return OrderReport(
        consistent=share(sum(a == SWAPPED[b] for a, b in pairs)),
        prefers_first=share(sum(a == b == FIRST for a, b in pairs)),
        prefers_second=share(sum(a == b == SECOND for a, b in pairs)),
        pairs=len(pairs),
        missing=len(all_pairs) - len(pairs),
    )


def pair_verdict(straight: str, swapped: str) -> str:
    """One verdict from both orders, as of the straight one: a win in both, or one win and one tie, is a win; a win in
    each order, which is the place's and not the response's, is a tie."""
    score = _signed(straight) - _signed(swapped)
    return FIRST if score > 0 else SECOND if score < 0 else TIE


def _signed(verdict: str) -> int:
    return {FIRST: 1, SECOND: -1, TIE: 0}[verdict]
