"""What TRL's trainers share here: rows as they are, losses exact for any split of the global batch, row-wise scores."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from cdpo.train.batches import GlobalBatches, Part, Row
from cdpo.train.kept import BATCHES, kept_scores
from cdpo.train.trl_resume import Resumable, sum_over_ranks

Scores = dict[str, float]


class Exact(Resumable):
    """What the three trainers share; stands before TRL's class in the order of inheritance.

    `rows` and `tune_rows` are lists of tokenised rows; `batches` (a GlobalBatches) is made from `rows` by `use_rows`.
    """

    # `compute_loss` weights micro-batches itself; Trainer must not divide by the accumulation as well
    loss_is_scaled_for_ga = True
    #: whether each pass through the model needs all ranks (cdpo/train/sharded.py)
    in_step = False
    #: rows that went through the model to be scored, on all ranks
    rows_passed = 0

    def use_rows(self: Any, rows: Sequence[Row], tune_rows: Sequence[Row], *, batch_size: int, seed: int) -> None:
        self.tune_rows = tune_rows
        self.batches = GlobalBatches(
            rows,
            self.data_collator,
            batch_size=batch_size,
            micro_batch=self.args.per_device_train_batch_size,
            seed=seed,
            rank=self.args.process_index,
            ranks=self.args.world_size,
            length=self.row_length,
            chosen_tokens=self.row_tokens,
        )
        #: name -> [sum, what it is divided by]; the names must be the same on all ranks
        self._means: dict[str, list[float]] = {}
        self._begin_sums()

    def _begin_sums(self: Any) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._summed_rows = 0.0
        self._tokens = self._tokens_here = 0.0
        self._means = {name: [0.0, 0.0] for name in self._means}

    def running(self: Any) -> dict[str, Any]:
        return {
            **super().running(),
            "sums": self._sums,
            "means": self._means,
            "rows": self._summed_rows,
            "tokens_here": self._tokens_here,
            "tokens": self._tokens,
        }

    def run_on(self: Any, everyone: list[dict[str, Any]] | None) -> None:
        super().run_on(everyone)
        self._begin_sums()
        if everyone is None:
            return
        self._tokens = everyone[0]["tokens"]
        # sums of as many ranks are each rank's own; those of another number are the first one's
        at, of = self.args.process_index, len(everyone)
        mine = [everyone[at]] if of == self.args.world_size else everyone if at == 0 else []
        for name in everyone[0]["sums"]:
            self._sums[name] = sum(each["sums"][name] for each in mine)
        for name in everyone[0]["means"]:
            self._means[name] = [sum(each["means"][name][place] for each in mine) for place in (0, 1)]
        self._summed_rows = sum(each["rows"] for each in mine)
        self._tokens_here = sum(each["tokens_here"] for each in mine)

    def add_mean(self: Any, name: str, total: float, weight: float) -> None:
        """Count towards a metric that is logged as the sum of `total` over the sum of `weight`, since the last log."""
        sums = self._means.setdefault(name, [0.0, 0.0])
        sums[0] += total
        sums[1] += weight

    @property
    def tokens_seen(self: Any) -> float:
        """Tokens trained on by all ranks, as of the last log; rows of DPO and RM count both sequences."""
        return float(self._tokens)

    def rows_seen(self: Any) -> list[Row]:
        """The rows that training will use: all of them, unless max_steps ends it within the first epoch."""
        steps = self.args.max_steps
        return [
            self.batches.dataset[at]
            for at in (self.batches.seen(steps) if steps > 0 else range(len(self.batches.dataset)))
        ]

    def get_train_dataloader(self: Any) -> Any:
        return self.batches

    def compute_loss(
        self: Any, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        part: Part = inputs.pop("part")
        self._tokens_here += float(inputs["attention_mask"].sum()) if part.rows else 0.0
        with no_gathering(self.accelerator):
            loss = self.weighted_loss(model, inputs, part, num_items_in_batch)
        for name, values in self._metrics["train"].items():
            self._sums[name] += values[-1] * part.rows
        self._metrics["train"].clear()
        self._summed_rows += part.rows
        return loss

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the row-weighted means since the last log, over all ranks, to what TRL logs."""
        if "loss" in logs or "train_loss" in logs:
            names = sorted(set(self._sums) - {"num_tokens"})
            values = [*(self._sums[name] for name in names), self._summed_rows, self._tokens_here]
            means = sorted(self._means)
            values += [value for name in means for value in self._means[name]]
            values = sum_over_ranks(values, self.args)
            sums, (rows, tokens) = values[: len(names)], values[len(names) : len(names) + 2]
            self._tokens += tokens
            if "loss" in logs:
                logs |= {name: value / rows for name, value in zip(names, sums, strict=True)}
                totals, weights = values[len(names) + 2 :: 2], values[len(names) + 3 :: 2]
                logs |= {
                    name: total / weight for name, total, weight in zip(means, totals, weights, strict=True) if weight
                }
            logs["num_tokens"] = self._tokens
            self._sums.clear()
            self._means = {name: [0.0, 0.0] for name in self._means}
            self._summed_rows = self._tokens_here = 0.0
        super().log(logs, start_time)  # type: ignore[misc]

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> Scores:
        """Means over the rows of `tune`, under TRL's names with `eval_` before them."""
        table = self.score(self.tune_rows)
        metrics = {f"{metric_key_prefix}_{name}": sum(values) / len(values) for name, values in table.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def score(self: Any, rows: Sequence[Row], journal: Path | None = None) -> dict[str, list[float]]:
        """Every metric of every row, in their order, each as of a batch of one; the ranks share the work.

        With `journal`, a file, what has been scored is kept there, and need not be scored again after a kill: so it
        must belong to this model as it now is. Other rows have a journal of their own beside it.
        """
        return self._over_rows(rows, self.score_batch, journal)  # type: ignore[no-any-return]

    def _over_rows(self: Any, rows: Sequence[Row], score: Any, journal: Path | None = None) -> dict[str, list[float]]:
        ranks, size = self.args.world_size, self.args.per_device_eval_batch_size
        with kept_scores(journal, rows, self.args) as kept:
            todo = [at for at in self._longest_first(rows) if at not in kept]
            self.rows_passed += len(todo)
            # a multiple of what all ranks score at once, so that batches are the same whatever is kept
            many = ranks * size * BATCHES if journal is not None else max(1, len(todo))
            for start in range(0, len(todo), many):
                kept.add(self._score_part(rows, todo[start : start + many], score))
        table: dict[str, list[float]] = {}
        for at in range(len(rows)):
            for name, value in kept[at].items():
                table.setdefault(name, []).append(value)
        return table

    def _longest_first(self: Any, rows: Sequence[Row]) -> list[int]:
        return sorted(range(len(rows)), key=lambda at: -self.row_length(rows[at]))

    def _score_part(self: Any, rows: Sequence[Row], part: list[int], score: Any) -> list[tuple[int, Scores]]:
        """Scores of the rows at the places `part`, which the ranks share."""
        ranks, size = self.args.world_size, self.args.per_device_eval_batch_size
        own = part[self.args.process_index :: ranks]
        # where a pass needs all ranks, one that has no rows left runs the last row with them, and forgets it
        most = math.ceil(len(part) / ranks) if self.in_step else len(own)
        found: list[tuple[int, Scores]] = []
        self.model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            for start in range(0, most, size):
                places = own[start : start + size]
                batch = self._prepare_inputs(self.batches.collate([rows[at] for at in places or part[-1:]]))
                found.extend(zip(places, score(batch)[: len(places)], strict=True))
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return gather_object(found) if self.args.world_size > 1 else found

    # TRL would tokenise, truncate and add EOS; rows that are token ids already are as they shall be.
    def _prepare_dataset(self: Any, dataset: Any, *args: Any, **options: Any) -> Any:
        if {"input_ids", "chosen_ids"} & set(dataset.column_names):
            return dataset
        return super()._prepare_dataset(dataset, *args, **options)  # type: ignore[misc]

    # Training counts no operations, writes no model card and calls nobody.
    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def create_model_card(self, *_: Any, **__: Any) -> None:
        return None

    def _send_telemetry(self) -> None:
        return None


@contextlib.contextmanager
def no_gathering(accelerator: Any) -> Iterator[None]:
    """TRL gathers its metrics in every micro-batch, from tensors of one size; here a rank keeps its own."""
    accelerator.gather = accelerator.gather_for_metrics = _itself
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def _itself(value: Any, *_: Any, **__: Any) -> Any:
    return value
