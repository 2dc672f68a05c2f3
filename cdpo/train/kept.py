"""Numbers of rows that outlive a killed attempt: scores before training, and the reference's log-probabilities."""

import contextlib
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from cdpo.journal import Journal
from cdpo.train.batches import Row

#: batches of each rank after which what they gave is kept
BATCHES = 64


class Kept:
    """Scores of rows by the rows' places; all ranks know the same."""

    def __init__(self, known: dict[int, dict[str, float]], journal: Journal | None) -> None:
        self._known, self._journal = known, journal

    def __contains__(self, at: int) -> bool:
        return at in self._known

    def __getitem__(self, at: int) -> dict[str, float]:
        return self._known[at]

    def add(self, found: Sequence[tuple[int, dict[str, float]]]) -> None:
        for at, scores in found:
            self._known[at] = scores
            if self._journal is not None:
                self._journal.append(str(at), scores)


@contextlib.contextmanager
def kept_scores(path: Path | None, rows: Sequence[Row], args: Any) -> Iterator[Kept]:
    """What is known of `rows` from an earlier attempt; what is added is kept in `path`. Without a path: nothing is.

    The first rank reads and writes; the file's name holds a digest of the rows, so that those of others are not read.
    """
    if path is None:
        yield Kept({}, None)
        return
    with contextlib.ExitStack() as stack:
        journal = None
        known: list[Any] = [None]
        if args.process_index == 0:
            journal = stack.enter_context(Journal(path.with_name(f"{path.name}-{digest(rows)[:16]}.jsonl")))
            known = [{int(at): scores for at, scores in journal.items.items()}]
        if args.world_size > 1:
            broadcast_object_list(known)
        yield Kept(known[0], journal)


def digest(rows: Sequence[Row]) -> str:
    """A hash of the token ids and numbers of rows, in their order; of no log-probabilities that were put in."""
    summed = hashlib.sha256()
    for row in rows:
        for name in sorted(row):
            value = row[name]
            if name.startswith("ref_"):
                continue
            if isinstance(value, int | float):
                summed.update(f"{name}={value!r};".encode())
            elif name.endswith("_ids") or name == "labels":
                summed.update(f"{name}:{len(value)};".encode() + array("q", value).tobytes())
    return summed.hexdigest()
