"""The rows of a prepared dataset as token ids: those that this model can be trained on, counted where they are not."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cdpo.config.params import LabelNoiseParams
from cdpo.config.preferences import PreferenceParams
from cdpo.data.columns import RANGES, has_column, numbers
from cdpo.data.noise import noisy
from cdpo.data.preflight import usable_rows
from cdpo.data.prepared import COLUMNS, SPLITS, read_split
from cdpo.errors import StepError
from cdpo.models import read_config
from cdpo.step import Step
from cdpo.train.batches import Row
from cdpo.train.loss_types import PROBABILITY


class Wanted(Protocol):
    """What of a step's parameters decides which rows it takes."""

    @property
    def limit(self) -> int | None: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def max_dropped(self) -> float: ...


@dataclass
class Splits:
    """Each row is {"prompt_id", "prompt_ids", "chosen_ids", "rejected_ids"}; responses end in their end token.

    For methods that learn from pairs also `bt_prob` where the data has it, `margin` and `weight` where they are asked
    for: floats.
    """

    train: list[Row]
    tune: list[Row]
    eval: list[Row]
    #: split -> rows, rows dropped by cause, the longest row; of `train` also what label noise did
    report: dict[str, Any]


def read_splits(step: Step, params: Wanted, tokenizer: Any, *, room: int | None = None) -> Splits:
    """All splits of the input `data`, tokenised; of `train` only `limit` rows, drawn with the step's seed.

    Label noise comes over `train` alone, and before rows are tokenised, so that texts and numbers agree. Rows longer
    than max_length (the model's context where it is not given) are dropped and counted; of `train` also those without
    `room` for so many tokens after the prompt. Raises StepError where more than `max_dropped` of a split are, and where
    a number that a loss reads is missing or makes no sense.
    """
    longest = context(step.input("model"), params.max_length)
    kept: dict[str, list[Row]] = {}
    report: dict[str, Any] = {}
    for name in SPLITS:
        rows = _with_numbers(read_split(step.input("data"), name), params, name)
        added: dict[str, Any] = {}
        if name == "train":
            rows = _limited(rows, step, params)
            rows, added = _with_noise(rows, step, params)
        kept[name], found = usable_rows(
            rows,
            tokenizer,
            longest,
            params.max_dropped,
            name,
            room=room if name == "train" else None,
            carry=[column for column in RANGES if isinstance(params, PreferenceParams) and has_column(rows, column)],
        )
        report[name] = {"rows": found.rows, "dropped": dict(found.dropped), "longest": found.longest, **added}
        if found.dropped:
            causes = ", ".join(f"{count} {cause}" for cause, count in sorted(found.dropped.items()))
            step.note(f"{name}: left out of {found.rows} rows: {causes}")
    return Splits(**kept, report=report)


def _with_numbers(rows: list[dict[str, Any]], params: Wanted, split: str) -> list[dict[str, Any]]:
    """The rows' own columns, and of the numbers that a loss may read those that are there or asked for, checked."""
    asked = {name: getattr(params, f"{name}_column", None) for name in ("margin", "weight")}
    columns = {name: column for name, column in asked.items() if column is not None}
    if _reads_bt_prob(params, split) and (_must_have_bt_prob(params, split) or has_column(rows, "bt_prob")):
        columns["bt_prob"] = "bt_prob"
    found = {name: numbers(rows, column, split, *RANGES[name]) for name, column in columns.items()}
    return [
        {**{name: row[name] for name in COLUMNS}, **{name: values[at] for name, values in found.items()}}
        for at, row in enumerate(rows)
    ]


def _reads_bt_prob(params: Wanted, split: str) -> bool:
    return isinstance(params, PreferenceParams) or _must_have_bt_prob(params, split)


def _must_have_bt_prob(params: Wanted, split: str) -> bool:
    """The loss needs it in every split, label noise in `train` alone."""
    if isinstance(params, PreferenceParams) and PROBABILITY & set(params.loss_types):
        return True
    return split == "train" and isinstance(params, LabelNoiseParams) and params.needs_bt_prob


def _limited(rows: list[dict[str, Any]], step: Step, params: Wanted) -> list[dict[str, Any]]:
    if params.limit is None or params.limit >= len(rows):
        return rows
    drawn = np.random.default_rng(step.seed_for("limit")).permutation(len(rows))[: params.limit]
    return [rows[at] for at in sorted(drawn)]


def _with_noise(rows: list[dict[str, Any]], step: Step, params: Wanted) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if not isinstance(params, LabelNoiseParams) or not (params.noise_type or params.redraw_labels):
        return rows, {}
    rows, done = noisy(rows, params, step.seed or 0)
    kind = params.noise_type or "redraw_labels"
    step.note(f"train: {kind}: {done['switched']} of {len(rows)} labels switched")
    return rows, {"noise": done}


def context(folder: Path, max_length: int | None) -> int:
    """Tokens that a row may have: `max_length`, or the model's context where none is asked for."""
    config = read_config(folder).get_text_config()
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
