"""The short-name tables of `configs/`: models, datasets, rewards, optimisers. Values, not names, are what gets hashed.

A table that a project's `configs/` does not hold is read from the ones that cdpo ships.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

import cdpo.pipelines as pipelines_package
from cdpo.config.params import Params, Positive
from cdpo.config.problems import ConfigError, Problem, YamlPath, suggest
from cdpo.config.yaml_reader import Document, read_yaml

MODELS = "models/names.yaml"
REWARDS = "models/reward.yaml"
LORA_MODULES = "models/lora_modules.yaml"
DATASETS = "datasets/preprocess.yaml"
EVALUATION_REWARDS = "evaluations/reward.yaml"
OPTIMISERS = "pipelines/optim.yaml"


class ModelEntry(Params):
    """Where a model comes from: exactly one of `id`, `path` and `build`."""

    id: str | None = None
    """On the Hugging Face Hub."""
    path: str | None = None
    """A local folder that `from_pretrained` reads."""
    build: dict[str, Any] | None = None
    """Made by cdpo from these values, with weights drawn from a seed: `{kind: tiny, seed: 0}`."""
    template: str | None = None
    """A chat template of cdpo's own (`plain`, `inst`), for a model whose tokenizer has none."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelEntry":
        if sum(origin is not None for origin in (self.id, self.path, self.build)) != 1:
            raise ValueError("exactly one of id, path and build says where the model comes from")
        return self


class RewardEntry(ModelEntry):
    """A reward model; `reverse: true` for a cost model, whose low scores are good."""

    reverse: bool = False


class DatasetEntry(Params):
    """Where a dataset comes from; every other key of the entry is a parameter of PREP."""

    id: str | None = None
    """On the Hugging Face Hub."""
    config: str | None = None
    path: str | None = None
    """A local file, folder or glob."""
    eval_path: str | None = None
    """Files of the eval split, where the source has one of its own."""
    gold: str | None = None
    """The closed-form reward of a dataset that has one (`playground`)."""


class OptimiserTable(Params):
    """Learning rates and epochs where a task writes none, and their multipliers by name."""

    defaults: dict[str, dict[str, Positive]] = Field(default_factory=dict)
    """By pipeline: learning_rate, num_train_epochs."""
    num_train_epochs: dict[str, Positive] = Field(default_factory=dict)
    """Multiplier of the default epochs, by dataset."""
    learning_rate: dict[str, Positive] = Field(default_factory=dict)
    """Multiplier of the default learning rate, by model."""


_OptionalText = Annotated[str, Field(min_length=1)]


class LoraTable(Params):
    """Layers that get an adapter, by the beginning of a model's short name; the longest beginning wins."""

    modules: dict[str, str | list[_OptionalText]] = Field(default_factory=dict)


@dataclass
class Tables:
    """All tables of one `configs/`, with the documents they were read from (for the places of problems)."""

    models: dict[str, ModelEntry] = field(default_factory=dict)
    rewards: dict[str, RewardEntry] = field(default_factory=dict)
    #: name -> (entry, parameters of PREP)
    datasets: dict[str, tuple[DatasetEntry, dict[str, Any]]] = field(default_factory=dict)
    #: beginning of a dataset's name -> reward
    evaluation_rewards: dict[str, str] = field(default_factory=dict)
    lora: LoraTable = field(default_factory=LoraTable)
    optimisers: OptimiserTable = field(default_factory=OptimiserTable)
    files: list[Path] = field(default_factory=list)

    def lora_modules(self, model: str) -> str | list[str] | None:
        """The layers for a model, by the longest beginning of its short name; None where no beginning fits."""
        fitting = [beginning for beginning in self.lora.modules if model.startswith(beginning)]
        return self.lora.modules[max(fitting, key=len)] if fitting else None

    def evaluation_reward(self, dataset: str) -> str | None:
        fitting = [beginning for beginning in self.evaluation_rewards if dataset.startswith(beginning)]
        return self.evaluation_rewards[max(fitting, key=len)] if fitting else None


def shipped_configs() -> Path:
    """The folder of the configs that come with cdpo: beside `pipelines/`, in a checkout and in an installed wheel."""
    return Path(pipelines_package.__path__[0]).parent / "configs"


def read_tables(configs: Path) -> Tables:
    """Read every table below `configs`. Raises ConfigError with all that is wrong in all of them."""
    tables = Tables()
    problems: list[Problem] = []

    def document(name: str) -> Document | None:
        path = configs / name
        path = path if path.exists() else shipped_configs() / name
        if not path.exists():
            return None
        tables.files.append(path)
        try:
            return read_yaml(path)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    if models := document(MODELS):
        problems.extend(add_models(tables, models, (), models.value))
    if rewards := document(REWARDS):
        problems.extend(add_rewards(tables, rewards, (), rewards.value))
    if datasets := document(DATASETS):
        problems.extend(add_datasets(tables, datasets, (), datasets.value))
    if lora := document(LORA_MODULES):
        found, wrong = checked(LoraTable, {"modules": lora.value}, lora, (), strip=1)
        problems.extend(wrong)
        tables.lora = found or tables.lora
    if optimisers := document(OPTIMISERS):
        table, wrong = checked(OptimiserTable, optimisers.value, optimisers, ())
        problems.extend(wrong)
        tables.optimisers = table or tables.optimisers
    if evaluation := document(EVALUATION_REWARDS):
        problems.extend(_add_evaluation_rewards(tables, evaluation))
    if problems:
        raise ConfigError(problems)
    return tables


def add_models(tables: Tables, document: Document, path: YamlPath, value: Any) -> Iterable[Problem]:
    for name, entry, here in _entries(document, path, value, problems := []):
        found, wrong = checked(ModelEntry, _as_origin(entry), document, here)
        problems.extend(wrong)
        if found:
            tables.models[name] = found
    return problems


def add_rewards(tables: Tables, document: Document, path: YamlPath, value: Any) -> Iterable[Problem]:
    for name, entry, here in _entries(document, path, value, problems := []):
        found, wrong = checked(RewardEntry, _as_origin(entry), document, here)
        problems.extend(wrong)
        if found:
            tables.rewards[name] = found
    return problems


def add_datasets(tables: Tables, document: Document, path: YamlPath, value: Any) -> Iterable[Problem]:
    """Source keys are checked here; the others are PREP's, and are checked with a run's own `PREP:` mapping."""
    for name, entry, here in _entries(document, path, value, problems := []):
        entry = _as_origin(entry)
        if not isinstance(entry, dict):
            problems.append(document.problem(here, f"should be a mapping or a name, not {_show(entry)}"))
            continue
        own = {key: item for key, item in entry.items() if key in DatasetEntry.model_fields}
        found, wrong = checked(DatasetEntry, own, document, here)
        problems.extend(wrong)
        if found:
            params = {key: item for key, item in entry.items() if key not in own}
            tables.datasets[name] = (found, params)
    return problems


def _add_evaluation_rewards(tables: Tables, document: Document) -> Iterable[Problem]:
    for name, reward, here in _entries(document, (), document.value, problems := []):
        if not isinstance(reward, str):
            problems.append(document.problem(here, f"should be the name of a reward, not {_show(reward)}"))
        elif reward not in tables.rewards:
            problems.append(document.problem(here, f"no reward is called {reward!r}{suggest(reward, tables.rewards)}"))
        else:
            tables.evaluation_rewards[name] = reward
    return problems


def _entries(
    document: Document, path: YamlPath, value: Any, problems: list[Problem]
) -> Iterable[tuple[str, Any, YamlPath]]:
    if not isinstance(value, dict):
        problems.append(document.problem(path, f"should be a mapping from names to entries, not {_show(value)}"))
        return
    for name, entry in value.items():
        yield name, entry, (*path, name)


def _as_origin(entry: Any) -> Any:
    """A bare text is a Hub id, or a path where it looks like one."""
    if isinstance(entry, str):
        return {"path" if entry.startswith((".", "/", "~", "${env:")) else "id": entry}
    return entry


def checked(
    model: type[Params], value: Any, document: Document, path: YamlPath, strip: int = 0
) -> tuple[Any, list[Problem]]:
    """`value` as `model`, or None and a problem for everything wrong with it.

    `strip` leaves out leading parts of pydantic's `loc`, where the document holds only an inner part of `value`.
    """
    try:
        return model.model_validate(value), []
    except ValidationError as error:
        return None, pydantic_problems(error, document, path, model, strip)


def pydantic_problems(
    error: ValidationError,
    document: Document,
    path: YamlPath,
    model: type[Params],
    strip: int = 0,
    only: str | None = None,
) -> list[Problem]:
    """Pydantic's errors at their places in the document.

    `strip` leaves out leading parts of `loc`; parts that name a branch of a union, not a key, are passed over. `only`
    keeps what concerns the value of one field, whose missing neighbours are not its problem.
    """
    problems = []
    for each in error.errors(include_url=False):
        whole = each["loc"]
        if only is not None and (whole[:1] != (only,) or (len(whole) == 1 and each["type"] == "missing")):
            continue
        here: YamlPath = path
        for part in whole[strip:]:
            if (*here, part) in document.values:
                here = (*here, part)
        if each["type"] == "extra_forbidden":
            known = model.model_fields if len(whole) == 1 else ()
            here = here if here[-1:] == whole[-1:] else (*here, whole[-1])
            problems.append(document.problem(here, f"unknown key{suggest(str(whole[-1]), known)}", at_key=True))
        elif each["type"] == "missing":
            problems.append(document.problem((*here, whole[-1]), "is required and missing", at_key=True))
        else:
            problems.append(document.problem(here, _sentence(each["msg"], each["input"])))
    return list(dict.fromkeys(problems))


def _sentence(message: str, given: Any) -> str:
    message = message.removeprefix("Value error, ").replace("Input should", "should")
    return message if isinstance(given, dict) else f"{message}, not {_show(given)}"


def _show(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
