"""The reference's log-probabilities of a dataset, computed by one step and read by all that learn from its pairs.

They are what `DPOTrainer.add_reference` would put into the rows of each of them, by the same code on the same weights.
"""

import hashlib
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback

from cdpo.config.preferences import PreferenceParams
from cdpo.data.prepared import SPLITS
from cdpo.errors import StepError
from cdpo.files import read_json, write_json
from cdpo.memory import at_once
from cdpo.models import load_tokenizer, set_threads
from cdpo.score.fit import refuse_unknown_tokens
from cdpo.step import Step
from cdpo.train.arguments import Precision, check_processes
from cdpo.train.batches import Row
from cdpo.train.rows import read_splits
from cdpo.train.sharded import is_sharded
from cdpo.train.trainable import kept_in, reference_policy
from cdpo.train.trl_adapter import DPOConfig, DPOTrainer

if TYPE_CHECKING:
    from cdpo.pipelines.reference import REFERENCEParams

#: pairs that go through the model at once where devices.yaml says nothing: nothing is kept for a backward pass
BATCH = {"cpu": 32, "cuda": 16}
NUMBERS = ("ref_chosen_logps", "ref_rejected_logps")
SIDES = ("chosen", "rejected")
REPORT = "report.json"


def compute_reference(step: Step, params: "REFERENCEParams") -> dict[str, Any]:
    """Write the log-probabilities of all rows of the step's data that training will see; the step's summary."""
    if is_sharded(step.device):
        raise StepError(
            f"{step.pipeline} runs whole models forward, and {step.device.distributed_type} shares out what training "
            f"needs: give it `pipelines: {{{step.pipeline}: {{processes: 1}}}}` in devices.yaml, or more processes"
        )
    set_threads(step.device)
    began = time.monotonic()
    precision = Precision.of(step, params)
    adapter = step.input("model_adapter") if step.has("model_adapter") else None
    tokenizer = load_tokenizer(step.input("model"), adapter, params.template)
    first = params.first_rows
    splits = read_splits(step, params, tokenizer, room=first.room if first else None)
    model = reference_policy(step, params, precision)
    sequences = (ids for row in splits.train for name, ids in row.items() if name.endswith("_ids"))
    refuse_unknown_tokens(model.get_input_embeddings().num_embeddings, sequences, "the model")
    rows_at_once = step.device.fewer(step.device.micro_batch or BATCH.get(step.device.kind, 16))
    trainer = _trainer(step, params, precision, model, tokenizer, splits.train, rows_at_once)
    wanted = {name: getattr(splits, name) for name in SPLITS}
    if first is not None and first.rows < len(splits.train):
        wanted["train"] = [splits.train[at] for at in sorted(trainer.batches.order(0)[: first.rows])]
    total = sum(map(len, wanted.values()))
    trainer.add_callback(_Progress(step, rows_at_once * step.device.processes, total))
    with at_once(rows_at_once):
        for name, rows in wanted.items():
            trainer.add_reference(rows, step.checkpoints / f"reference-{name}")
    step.progress(total, total, unit="rows")
    types = {"compute": precision.compute, "weights": kept_in(step.device, params.trains_adapter, precision)}
    if step.rank == 0:
        for name, rows in wanted.items():
            _write(step.out / f"{name}.parquet", rows)
        write_json(step.out / REPORT, types)
    return {
        "reference_rows": trainer.reference_rows,
        "splits": {name: len(rows) for name, rows in wanted.items()},
        **types,
        "rows_at_once": rows_at_once,
        "seconds": round(time.monotonic() - began, 2),
    }


def _trainer(
    step: Step,
    params: "REFERENCEParams",
    precision: Precision,
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    rows_at_once: int,
) -> DPOTrainer:
    """The trainer of a step that learns from pairs, as far as its reference is concerned."""
    arguments = DPOConfig(
        output_dir=str(step.checkpoints),
        per_device_train_batch_size=rows_at_once,
        per_device_eval_batch_size=rows_at_once,
        use_cpu=step.device.kind == "cpu",
        bf16=precision.compute == "bf16",
        fp16=precision.compute == "fp16",
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
        max_length=None,
        ld_alpha=params.ld_alpha,
        router_aux_loss_coef=0.0,
        # no second model is loaded: this one is the reference
        precompute_ref_log_probs=not isinstance(model, PeftModel),
    )
    check_processes(step.device, arguments)
    shown = Dataset.from_list([dict(rows[0])])
    trainer = DPOTrainer(
        model=model, args=arguments, train_dataset=shown, eval_dataset=shown, processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    trainer.use_rows(rows, [], batch_size=rows_at_once, seed=step.seed_for("order of rows"))
    return trainer


class _Progress(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: Step, rows: int, total: int) -> None:
        self.step, self.rows, self.total, self.done = step, rows, total, 0

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self.done = min(self.done + self.rows, self.total - 1)
        self.step.progress(self.done, self.total, unit="rows")


def _write(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"prompt_id": pa.array([row["prompt_id"] for row in rows], pa.string())}
    for side in SIDES:
        columns[side] = pa.array([content_hash(row, side) for row in rows], pa.string())
    for name in NUMBERS:
        columns[name] = pa.array([row[name] for row in rows], pa.float64())
    pq.write_table(pa.table(columns), path)


def content_hash(row: Row, side: str) -> str:
    """16 hex digits of the token ids of a row's prompt and of its response `side` (`chosen` or `rejected`)."""
    prompt, response = row["prompt_ids"], row[f"{side}_ids"]
    ids = array("q", [len(prompt), *prompt, *response])
    return hashlib.sha256(ids.tobytes()).hexdigest()[:16]


class Held:
    """The folder that a REFERENCE step left, as a step that learns from pairs reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, step: Step, params: PreferenceParams, precision: Precision) -> "Held | None":
        """The step's input `reference`; None where it has none, and computes its own.

        So it does, and says so, where it keeps its weights in another type than the step that made them: an adapter
        that is trained with DeepSpeed or FSDP lies over weights in fp32.
        """
        if not step.has("reference"):
            return None
        folder = step.input("reference")
        made = read_json(folder / REPORT)
        own = {"compute": precision.compute, "weights": kept_in(step.device, params.trains_adapter, precision)}
        if made != own:
            said = "; ".join(f"{name} {made[name]} there, {own[name]} here" for name in own if made[name] != own[name])
            step.note(f"the reference is computed anew: {said}")
            return None
        return cls(folder)

    def put(self, split: str, rows: Sequence[Row]) -> None:
        """Put `ref_chosen_logps` and `ref_rejected_logps` into rows of `split`, whichever response is the chosen one.

        Raises StepError for a row that is not there, and for one whose tokens are others.
        """
        import pyarrow.parquet as pq

        known = {row["prompt_id"]: row for row in pq.read_table(self.folder / f"{split}.parquet").to_pylist()}
        for row in rows:
            found = known.get(row["prompt_id"])
            if found is None:
                raise StepError(
                    f"{self.folder} has no reference for row {row['prompt_id']} of {split!r}, which is to be trained "
                    "on: it was not made for this step"
                )
            said = [content_hash(row, side) for side in SIDES]
            if said not in ([found[side] for side in SIDES], [found[side] for side in SIDES[::-1]]):
                raise StepError(
                    f"{self.folder} has the reference of other tokens for row {row['prompt_id']} of {split!r}: it was "
                    "not made for this step"
                )
            same = said[0] == found["chosen"]
            for name, source in zip(NUMBERS, NUMBERS if same else NUMBERS[::-1], strict=True):
                row[name] = found[source]
