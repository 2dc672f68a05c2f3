"""How far people who labelled the same items agree, beyond what chance alone would make of their labels.

Krippendorff's alpha for nominal data, which allows any number of labellers and missing labels: K. Krippendorff,
Computing Krippendorff's Alpha-Reliability (2011), https://repository.upenn.edu/asc_papers/43, section C.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

#: the labels that one item got, one per labeller who labelled it
Labels = Sequence[Hashable]


def alpha(items: Sequence[Labels]) -> float | None:
    """Krippendorff's nominal alpha: 1 for perfect agreement, 0 for that of chance, below it for less.

    Items with fewer than two labels play no part. None where there are no others, and where all labels are the same:
    then nothing says what chance would have made of them.
    """
    paired = [Counter(labels) for labels in items if len(labels) > 1]
    of_all: Counter[Hashable] = Counter()
    agreeing = 0.0
    for counts in paired:
        of_all.update(counts)
        agreeing += sum(count * (count - 1) for count in counts.values()) / (counts.total() - 1)
    n = of_all.total()
    by_chance = sum(count * (count - 1) for count in of_all.values())
    if n * (n - 1) == by_chance:
        return None
    return ((n - 1) * agreeing - by_chance) / (n * (n - 1) - by_chance)


def agreeing_pairs(labels: Labels) -> float:
    """The share of the pairs of an item's labellers who gave the same label. Raises ValueError for fewer than two."""
    if len(labels) < 2:
        raise ValueError("agreement takes two labels")
    counts = Counter(labels)
    return sum(count * (count - 1) for count in counts.values()) / (len(labels) * (len(labels) - 1))
