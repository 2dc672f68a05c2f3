"""How the rows of one optimiser step are cut into micro-batches: the cut changes nothing but the order of sums.

A global batch is `batch_size` rows of a shuffled epoch (the last one may have fewer). Its rows are ordered by length
and dealt into equal parts, one for each micro-batch of each rank. A loss that is a mean over rows is then
`sum over parts of (rows in the part / rows in the global batch) * (mean over the part)`; the two shares travel with
each part. A part that would be empty holds one row with share 0, so that every rank runs as many forward passes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdpo.errors import StepError
from cdpo.seeds import derive_seed

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """What a micro-batch is of its global batch. Shares are times the number of ranks: DDP averages gradients."""

    #: rows of the global batch in this part; 0 for a part that only fills up
    rows: int
    #: (rows here / rows of the global batch) x ranks
    row_share: float
    #: (chosen tokens here / chosen tokens of the global batch) x ranks
    token_share: float


class GlobalBatches:
    """The micro-batches of one rank, epoch after epoch, as transformers' Trainer wants a data loader to look.

    `collate` makes the tensors; the Part is added under the key `part`. The order of epoch `e` depends on `seed`
    and `e` only: neither on the number of ranks nor on the size of a micro-batch.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        collate: Callable[[list[Row]], dict[str, Any]],
        *,
        batch_size: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        length: Callable[[Row], int],
        chosen_tokens: Callable[[Row], int],
    ) -> None:
        self.dataset, self.collate = rows, collate
        self.batch_size, self.rank, self.ranks, self.seed = batch_size, rank, ranks, seed
        self.micro_batch = micro_batch
        self.lengths = np.array([length(row) for row in rows])
        self.tokens = np.array([chosen_tokens(row) for row in rows])
        self.epoch = 0

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimiser step on one rank."""
        return slots(self.batch_size, self.micro_batch, self.ranks)

    def __len__(self) -> int:
        """Micro-batches of one epoch on one rank."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole * self.accumulation + (slots(rest, self.micro_batch, self.ranks) if rest else 0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(self.seed, "epoch", epoch)).permutation(len(self.dataset))

    def seen(self, steps: int) -> list[int]:
        """The rows that the first `steps` optimiser steps use, ascending."""
        per_epoch = math.ceil(len(self.dataset) / self.batch_size)
        if steps >= per_epoch:
            return list(range(len(self.dataset)))
        return sorted(int(index) for index in self.order(0)[: steps * self.batch_size])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        order = self.order(self.epoch)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            chosen = chosen[np.argsort(-self.lengths[chosen], kind="stable")]
            parts = slots(len(chosen), self.micro_batch, self.ranks) * self.ranks
            for part in np.array_split(chosen, parts)[self.rank :: self.ranks]:
                yield self._micro_batch(part, chosen)

    def _micro_batch(self, part: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
        filling = len(part) == 0
        batch = self.collate([self.dataset[int(index)] for index in (chosen[-1:] if filling else part)])
        if filling and "labels" in batch:
            batch["labels"].fill_(-100)  # a loss over tokens is divided by their number: these are none
        batch["part"] = Part(
            rows=len(part),
            row_share=len(part) / len(chosen) * self.ranks,
            token_share=float(self.tokens[part].sum() / self.tokens[chosen].sum() * self.ranks),
        )
        return batch


def slots(rows: int, micro_batch: int, ranks: int) -> int:
    """Micro-batches that each rank runs for a global batch of so many rows."""
    return math.ceil(rows / (micro_batch * ranks))


def refuse_split(loss_types: Sequence[str], batch_size: int, micro_batch: int, ranks: int) -> None:
    """Raise StepError where the global batch is split and a loss compares its rows with each other."""
    coupled = [kind for kind in loss_types if kind.startswith("aot")]
    if coupled and (ranks > 1 or micro_batch < batch_size):
        raise StepError(
            f"loss_type {coupled[0]} sorts the rows of a batch against each other, so its {batch_size} rows must go "
            f"through the model at once; here they go {micro_batch} at a time on {ranks} process(es). Give the step "
            f"one process and micro_batch {batch_size} in devices.yaml, or lower batch_size in the task"
        )
