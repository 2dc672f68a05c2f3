"""A user's own function, named in YAML as `./my.py:score` or `package.module:score`."""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from cdpo.errors import UsageError


def load_plugin(reference: str) -> Callable[..., Any]:
    """The function that `reference` names: `PATH.py:FUNCTION` (a file) or `package.module:FUNCTION` (importable).

    A file is run as a module of its own; its folder is not put on `sys.path`, because only that one file is hashed.
    Raises `UsageError` that names file and function where the file, the module or the function is missing, where it is
    no function, and where importing it fails.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise UsageError(f"{reference!r} names no function: write ./my.py:FUNCTION or package.module:FUNCTION")
    module = _from_file(Path(place), name) if place.endswith(".py") else _from_package(place, name)
    function = getattr(module, name, None)
    if function is None:
        known = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        has = f"it has {', '.join(known)}" if known else "it has no functions"
        raise UsageError(f"{place} has no function {name!r}; {has}")
    if not callable(function):
        raise UsageError(f"{name!r} in {place} is no function but {type(function).__name__}")
    loaded: Callable[..., Any] = function
    return loaded


def _from_file(path: Path, function: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {path} (for the function {function!r})")
    # A name of its own in sys.modules: dataclasses and pickling look there, and two files called my.py stay apart.
    name = "cdpo_plugin_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{path} (for the function {function!r}) cannot be run: {_said(error)}") from error
    return module


def _from_package(module: str, function: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise UsageError(
            f"the module {module} (for the function {function!r}) cannot be imported: {_said(error)}"
        ) from error


def said(error: BaseException, reference: str) -> str:
    """An error that a user's function raised: what it is, and the line of its file where it came from."""
    file = reference.rpartition(":")[0]
    lines = [each for each in traceback.extract_tb(error.__traceback__) if Path(each.filename).name == Path(file).name]
    where = f" (line {lines[-1].lineno} of {Path(file).name}, in {lines[-1].name})" if lines else ""
    return f"{_said(error)}{where}"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
