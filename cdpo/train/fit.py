"""What the training pipelines do alike: a trainer over its rows, its scores before and after, and what it leaves."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from cdpo.config.params import TrainingParams
from cdpo.score.fit import refuse_unknown_tokens
from cdpo.step import Step
from cdpo.train.arguments import Precision
from cdpo.train.batches import Row
from cdpo.train.checkpoints import Checkpoints
from cdpo.train.reporting import Samples, add_callbacks
from cdpo.train.rows import Splits
from cdpo.train.scores import means, write_scores
from cdpo.train.sharded import cuts_weights, obey, training
from cdpo.train.tracking import tracked
from cdpo.train.trainable import save_model, settle


def make_trainer(
    trainer: Any,
    step: Step,
    params: TrainingParams,
    *,
    model: Any,
    arguments: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    tune: Sequence[Row],
    samples: Samples | None = None,
    **options: Any,
) -> Any:
    """A `trainer` over tokenised rows, with progress, curves, samples and early stopping; `options` are its own."""
    # TRL looks at the first row of a Dataset to learn what kind of data it is given; the rows themselves stay lists.
    kind = Dataset.from_list([dict(rows[0])])
    sequences = (ids for row in rows for name, ids in row.items() if name.endswith("_ids"))
    refuse_unknown_tokens(model.get_input_embeddings().num_embeddings, sequences, "the model")
    made = trainer(
        model=model, args=arguments, train_dataset=kind, eval_dataset=kind, processing_class=tokenizer, **options
    )
    obey(made, step.device, Precision.of(step, params).compute)
    made.use_rows(rows, tune, batch_size=params.batch_size, seed=step.seed_for("order of rows"))
    if step.measure is not None:
        step.measure(made, params)
    # one rank draws samples, and where weights are in parts it cannot alone
    add_callbacks(made, step, params, None if cuts_weights(step.device) else samples)
    return made


def fit(
    trainer: Any,
    step: Step,
    tokenizer: Any,
    precision: Precision,
    splits: Splits,
    tune: Sequence[Row],
    held_out: Sequence[Row],
    names: dict[str, str],
) -> dict[str, Any]:
    """Score `eval`, train, score `eval` and `tune`, save; the step's summary. `names` renames columns of scores.

    An attempt that was killed or stopped is gone on with: see cdpo/train/checkpoints.py.
    """

    def score(rows: Sequence[Row], journal: Path | None = None) -> dict[str, list[float]]:
        return {names.get(name, name): values for name, values in trainer.score(rows, journal).items()}

    began = time.monotonic()
    before = score(held_out, step.checkpoints / "before")
    scoring = (time.monotonic() - began) * (len(held_out) + len(tune)) / max(1, len(held_out))
    checkpoints = Checkpoints(step, trainer, scoring)
    with tracked(step, trainer):
        with training(trainer):
            result = checkpoints.train()
        seconds = checkpoints.training_seconds
        settle(trainer, step, precision)
        tables = {"eval": (splits.eval, score(held_out)), "tune": (splits.tune, score(tune))}
        save_model(trainer, tokenizer, step.out)
        if step.rank == 0:
            write_scores(step.out, tables)
    tokens = trainer.tokens_seen
    return {
        "optimiser_steps": trainer.state.global_step,
        "train_loss": round(result.training_loss, 6),
        "before": {"eval": _rounded(means(before))},
        "after": {split: _rounded(means(table)) for split, (_, table) in tables.items()},
        "best_step": _best_step(trainer),
        "resumed_from": checkpoints.resumed_from,
        "training_tokens": round(tokens),
        "training_seconds": round(seconds, 2),
        "training_tokens_per_second": round(tokens / max(seconds, 1e-9)),
        "seconds": round(time.monotonic() - began, 2),
        "compute": precision.compute,
        "processes": step.device.processes,
        "micro_batch": trainer.args.per_device_train_batch_size,
        "rows": splits.report,
    }


def _best_step(trainer: Any) -> int | None:
    """The optimiser step whose weights were kept, where the best and not the last are."""
    return trainer.state.best_global_step if trainer.args.load_best_model_at_end else None


def _rounded(values: dict[str, float]) -> dict[str, float]:
    """Six significant digits: the rows themselves are in scores.parquet."""
    return {name: value if not math.isfinite(value) else float(f"{value:.6g}") for name, value in values.items()}
