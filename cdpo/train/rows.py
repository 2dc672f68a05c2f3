"""The rows of a prepared dataset as token ids: those that this model can be trained on, counted where they are not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from cdpo.config.params import TrainingParams
from cdpo.data.preflight import usable_rows
from cdpo.data.prepared import read_split
from cdpo.errors import StepError
from cdpo.step import Step
from cdpo.train.batches import Row


@dataclass
class Splits:
    """Each row is {"prompt_id", "prompt_ids", "chosen_ids", "rejected_ids"}; responses end in their end token."""

    train: list[Row]
    tune: list[Row]
    eval: list[Row]
    #: split -> rows, rows dropped by cause, the longest row
    report: dict[str, Any]


def read_splits(step: Step, params: TrainingParams, tokenizer: Any) -> Splits:
    """All splits of the input `data`, tokenised; of `train` only `limit` rows, drawn with the step's seed.

    Rows longer than max_length (the model's context where it is not given) are dropped and counted. Raises StepError
    where more than `max_dropped` of a split are.
    """
    longest = context(step.input("model"), params.max_length)
    kept: dict[str, list[Row]] = {}
    report: dict[str, Any] = {}
    for name in ("train", "tune", "eval"):
        rows = read_split(step.input("data"), name)
        if name == "train" and params.limit is not None and params.limit < len(rows):
            drawn = np.random.default_rng(step.seed_for("limit")).permutation(len(rows))[: params.limit]
            rows = [rows[at] for at in sorted(drawn)]
        kept[name], found = usable_rows(rows, tokenizer, longest, params.max_dropped, name)
        report[name] = {"rows": found.rows, "dropped": dict(found.dropped), "longest": found.longest}
        if found.dropped:
            causes = ", ".join(f"{count} {cause}" for cause, count in sorted(found.dropped.items()))
            step.note(f"{name}: left out of {found.rows} rows: {causes}")
    return Splits(**kept, report=report)


def context(folder: Path, max_length: int | None) -> int:
    """Tokens that a row may have: `max_length`, or the model's context where none is asked for."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    most = getattr(config, "max_position_embeddings", None)
    if max_length is None and most is None:
        raise StepError(f"the configuration of {folder} does not say how long its context is: write `max_length`")
    if max_length is not None and most is not None and max_length > most:
        raise StepError(f"max_length {max_length} is more than the context of {folder}, which is {most} tokens")
    return int(max_length or most or 0)


def language_rows(rows: list[Row], loss: str) -> list[Row]:
    """For SFTTrainer: prompt and chosen response; `loss` on the response (`completion`) or on every token (`all`)."""
    made = []
    for row in rows:
        prompt, response = row["prompt_ids"], row["chosen_ids"]
        labels = [-100] * len(prompt) + response if loss == "completion" else prompt + response
        made.append({"input_ids": prompt + response, "labels": labels, "response_tokens": len(response)})
    return made


def compared_rows(rows: list[Row]) -> list[Row]:
    """For RewardTrainer: the prompt with each of its responses."""
    return [
        {"chosen_ids": row["prompt_ids"] + row["chosen_ids"], "rejected_ids": row["prompt_ids"] + row["rejected_ids"]}
        for row in rows
    ]
