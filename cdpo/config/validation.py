"""Values held against pydantic's models, and its errors as problems with their places in the document."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError

from cdpo.config.params import Params
from cdpo.config.paths import names_function
from cdpo.config.problems import Problem, YamlPath, suggest
from cdpo.config.yaml_reader import Document

#: what `rule` or `loss_type` is in a step where it is a user's own function, which is an input of the step
PLUGIN = "plugin"
#: parameters that may name a user's function -> the role of that input
PLUGGED = {"rule": "rule_plugin", "loss_type": "loss_plugin"}

#: a mapping, as pydantic calls it
_MAPPING = re.compile(r"a valid dictionary( or instance of \w+)?")


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
            known = _fields(model, whole[:-1])
            here = here if here[-1:] == whole[-1:] else (*here, whole[-1])
            problems.append(document.problem(here, f"unknown key{suggest(str(whole[-1]), known)}", at_key=True))
        elif each["type"] == "missing":
            problems.append(document.problem((*here, whole[-1]), "is required and missing", at_key=True))
        else:
            problems.append(document.problem(here, sentence(each["msg"], each["input"])))
    return list(dict.fromkeys(problems))


def _fields(model: type[Params], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand at `loc` (pydantic's) of a value of `model`."""
    for part in loc:
        if part in model.model_fields:  # else a user's own key, or the name of a branch of a union
            below = list(_models(model.model_fields[str(part)].annotation))
            if not below:
                return []
            model = below[0]
    return list(model.model_fields)


def _models(annotation: Any) -> Iterator[type[Params]]:
    """The schemas that an annotation holds: of `dict[str, X] | None`, X."""
    if isinstance(annotation, type) and issubclass(annotation, Params):
        yield annotation
    for each in get_args(annotation):
        yield from _models(each)


def sentence(message: str, given: Any) -> str:
    """What pydantic says of a value, without its preamble and with the value."""
    message = message.removeprefix("Value error, ").replace("Input should", "should")
    message = _MAPPING.sub("keys with values (`key: value`)", message).replace("a valid list", "a list")
    return message if isinstance(given, dict) else f"{message}, not {show(given)}"


def show(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def field_problems(document: Document, model: type[Params], name: str, value: Any, path: YamlPath) -> list[Problem]:
    """What is wrong with `value`, written at `path`, as the field `name` of `model`, by itself."""
    if name in PLUGGED and value == PLUGIN:
        return [document.problem(path, f"{PLUGIN} stands for a function of yours: name it, as ./my.py:FUNCTION")]
    try:
        model.model_validate({name: PLUGIN if name in PLUGGED and names_function(value) else value})
    except ValidationError as error:
        return pydantic_problems(error, document, path, model, strip=1, only=name)
    return []
