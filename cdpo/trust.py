"""Models that bring Python of their own: whose code may run in this process. Nothing is imported from them here.

A model's `auto_map` names classes in files beside its weights. transformers runs such a file where it is told
`trust_remote_code=True`, which is decided by folder: that of an entry that says so, and those that steps made of it.
The planner knows which they are (`PlannedStep.trusted`); whoever reads a step.json allows them.
"""

import atexit
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

#: the files whose `auto_map` transformers reads for a language model, a reward model or a tokenizer
_NAMING = ("config.json", "tokenizer_config.json")
#: where transformers copies such code to before it runs it; read when transformers is imported
MODULES = "HF_MODULES_CACHE"

_allowed: set[str] = set()
#: the copies of this process alone
_modules: list[str] = []


def allow(folders: Iterable[Path], copies: Path | None = None) -> None:
    """Let the code of these folders run in this process from here on.

    Copies of it are made below `copies`, or in a temporary folder that goes with this process. The cache that all
    processes of a user share would not do: a copy is not written at once, and another process, or one that comes after
    a kill, would run the half of it.
    """
    named = [os.path.realpath(folder) for folder in folders]
    if named and not _modules:
        import tempfile

        if copies is not None:
            copies.mkdir(parents=True, exist_ok=True)
        _modules.append(tempfile.mkdtemp(prefix="cdpo-modules-", dir=copies))
        os.environ[MODULES] = _modules[0]
        if copies is None:
            atexit.register(shutil.rmtree, _modules[0], ignore_errors=True)
    _allowed.update(named)


def allowed(folder: Path | str) -> bool:
    return os.path.realpath(folder) in _allowed


def own_code(folder: Path) -> list[str]:
    """The classes of its own that a model or a tokenizer names, as `FILE.CLASS` or `ns/name--FILE.CLASS`."""
    return sorted({each for name in _NAMING for each in _named_in(folder / name)})


def _named_in(path: Path) -> Iterator[str]:
    try:
        settings: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # said by whoever needs it
        return
    found = settings.get("auto_map") if isinstance(settings, dict) else None
    # of a tokenizer there may be two classes, or None in the place of one; old files name them without a key
    for value in found.values() if isinstance(found, dict) else [found]:
        yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str))


def not_pinned(folder: Path) -> str | None:
    """What keeps the code of a trusted model from being that which its key stands for; None: nothing."""
    for name in own_code(folder):
        repo, _, place = name.rpartition("--")
        if repo:
            return f"names code in another repository ({repo}), which its commit does not pin: save the model with it"
        file = f"{place.partition('.')[0]}.py"
        if not (folder / file).is_file():
            return f"names code in {file}, which is not there"
    return None


def refusal(folder: Path, name: str | None = None) -> str:
    """Why a model that brings code is not loaded; `name` is what the user calls it."""
    # those that are named, and those that they may import
    named = {f"{each.rpartition('--')[2].partition('.')[0]}.py" for each in own_code(folder)}
    files = sorted(named | {path.name for path in folder.glob("*.py")})
    return (
        f"{name or folder} brings code of its own ({', '.join(files)}), which cdpo does not run unasked. Read it; if "
        "you trust it, write `trust_remote_code: true` in the entry of this model, or of the one that it was made of "
        "(configs/models/names.yaml, configs/models/reward.yaml)"
    )
