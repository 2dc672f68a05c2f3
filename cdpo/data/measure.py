"""How many tokens every row has under a model's tokenizer, counted on all cores."""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cdpo.data.tokens import encode_rows

#: fewer rows are counted sooner than processes are started
WORTH_PROCESSES = 2000
#: rows that a process counts between two words to the one that waits
PART = 500

Row = Mapping[str, Any]


class Tokens(NamedTuple):
    """Of one row; a response's end token is counted. None for a response that the row does not have."""

    prompt: int
    chosen: int | None
    rejected: int | None
    #: of all these, those that stand for text which the tokenizer does not know
    unknown: int = 0

    @property
    def longest(self) -> int:
        return self.prompt + max(self.chosen or 0, self.rejected or 0)


def measure(
    rows: Sequence[Row], tokenizer: Any, tell: Callable[[int, int], None] = lambda done, total: None
) -> list[Tokens | None]:
    """Of every row, in their order; None for one whose response spells a special token. `tell` hears (done, total)."""
    processes = len(os.sched_getaffinity(0))
    if processes == 1 or len(rows) < WORTH_PROCESSES:
        return _tokens(rows, tokenizer)
    found: list[Tokens | None] = []
    for part in _on_all_cores(rows, tokenizer, processes):
        found += part
        tell(len(found), len(rows))
    return found


def _on_all_cores(rows: Sequence[Row], tokenizer: Any, processes: int) -> Iterator[list[Tokens | None]]:
    # Forked, so that the rows and the tokenizer are there already; nothing else than these is used in the children.
    _shared.clear()
    _shared.extend((rows, tokenizer))
    # a collection in a child would go through all the rows, and copy their pages
    gc.freeze()
    try:
        with multiprocessing.get_context("fork").Pool(processes, _begin) as pool:
            yield from pool.imap(_part, range(0, len(rows), PART))
    finally:
        gc.unfreeze()
        _shared.clear()


#: the rows and the tokenizer, where a forked process finds them
_shared: list[Any] = []


def _begin() -> None:
    # an interruption is its parent's to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _part(begin: int) -> list[Tokens | None]:
    rows, tokenizer = _shared
    return _tokens(rows[begin : begin + PART], tokenizer)


def _tokens(rows: Sequence[Row], tokenizer: Any) -> list[Tokens | None]:
    sides = [[side for side in (row["chosen"], row["rejected"]) if side is not None] for row in rows]
    encoded = encode_rows(tokenizer, [(row["prompt"], given) for row, given in zip(rows, sides, strict=True)])
    unknown = _unknown_id(tokenizer)
    found: list[Tokens | None] = []
    for row, each in zip(rows, encoded, strict=True):
        if each is None:
            found.append(None)
            continue
        lengths = iter(map(len, each.response_ids))
        chosen, rejected = (None if row[name] is None else next(lengths) for name in ("chosen", "rejected"))
        count = 0 if unknown is None else sum(ids.count(unknown) for ids in (each.prompt_ids, *each.response_ids))
        found.append(Tokens(len(each.prompt_ids), chosen, rejected, count))
    return found


def _unknown_id(tokenizer: Any) -> int | None:
    """The token for text that the tokenizer does not know; None where it has none, or where it means something else."""
    others = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    found: int | None = tokenizer.unk_token_id
    return None if found in others else found
