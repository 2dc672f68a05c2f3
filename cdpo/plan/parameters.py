"""The resolved parameters of a step: what was written, then the tables, then the defaults in the code.

A value that is written is used as written; multipliers of the optimiser table apply to the table's own defaults only.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cdpo.config.params import LabelNoiseParams, Params
from cdpo.config.tables import ModelEntry, Tables
from cdpo.pipeline import Pipeline

#: eight rows may have no best temperature
SMOKE = {"max_steps": 2, "limit": 8, "batch_size": 4, "bt_temperature": 1.0}


#: the column of the probability that the chosen response beats the rejected one
BT_PROB = "bt_prob"


@dataclass
class Resolved:
    """All values of a step, and those of them that differ from the defaults in the code (what is hashed)."""

    values: dict[str, Any]
    hashed: dict[str, Any]
    #: the columns that the step reads of its data, beside those that all data has -> the parameter that asks for each
    columns: dict[str, str]
    #: all of them, as the pipeline reads them
    params: Params


class ParameterResolver:
    """Fills in and checks parameters; the same written values for the same names are worked out once."""

    def __init__(self, tables: Tables, smoke: bool = False) -> None:
        self.tables = tables
        #: every training step is cut to 2 optimiser steps, and everything but the data to 8 rows
        self.smoke = smoke
        self._cache: dict[Any, Resolved | ValidationError] = {}

    def resolve(
        self,
        pipeline: Pipeline,
        written: dict[str, Any],
        model: str,
        dataset: str,
        source: ModelEntry | None,
        fixed: dict[str, Any],
    ) -> Resolved:
        """`written` holds the user's values; `source` is the entry of the model that the step runs; `fixed` stands
        beneath what is written (a dataset's own PREP parameters, a reward's `reverse`). Raises ValidationError.
        """
        cached = (pipeline.name, model, dataset, _hashable(written), _hashable(fixed), source and source.template)
        if cached not in self._cache:
            try:
                self._cache[cached] = self._resolve(pipeline, written, model, dataset, source, fixed)
            except ValidationError as error:
                self._cache[cached] = error
        found = self._cache[cached]
        if isinstance(found, ValidationError):
            raise found
        return found

    def _resolve(
        self,
        pipeline: Pipeline,
        written: dict[str, Any],
        model: str,
        dataset: str,
        source: ModelEntry | None,
        fixed: dict[str, Any],
    ) -> Resolved:
        fields = pipeline.params.model_fields
        values = {**{name: value for name, value in fixed.items() if value is not None}, **written}
        table = self.tables.optimisers
        multipliers = {
            "learning_rate": table.learning_rate.get(model, 1.0),
            "num_train_epochs": table.num_train_epochs.get(dataset, 1.0),
        }
        for name, default in table.defaults.get(pipeline.name, {}).items():
            if name in fields and values.get(name) is None:
                values[name] = default * multipliers.get(name, 1.0)
        if "template" in fields and values.get("template") is None and source is not None and source.template:
            values["template"] = source.template
        lora = values.get("lora")
        if lora is True or (isinstance(lora, dict) and "target_modules" not in lora):
            modules = self.tables.lora_modules(model)
            values["lora"] = {**({} if lora is True else lora), **({"target_modules": modules} if modules else {})}
        if self.smoke and pipeline.gives != "data":
            values.update({name: most for name, most in SMOKE.items() if name in fields})
        params = pipeline.params.model_validate(values)
        return Resolved(params.model_dump(), params.model_dump(exclude_defaults=True), _columns(params), params)


def _columns(params: Params) -> dict[str, str]:
    found = {
        column: name
        for name in ("weight_column", "margin_column")
        if (column := getattr(params, name, None)) is not None
    }
    if isinstance(params, LabelNoiseParams) and params.needs_bt_prob:
        noisy = (params.noise_type or "").startswith("bt_noise_")
        found[BT_PROB] = "redraw_labels" if params.redraw_labels else "noise_type" if noisy else "loss_type"
    return found


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in value.items())
    if isinstance(value, list):
        return tuple(_hashable(item) for item in value)
    return (type(value).__name__, value)
