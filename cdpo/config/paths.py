"""Paths as users write them in YAML: `~`, `${env:NAME}`, globs, and what a relative path is relative to."""

import glob
import os
import re
from pathlib import Path
from typing import Any

ENVIRONMENT = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")

#: a user's own function: `./my.py:score`, `package.module:score`
FUNCTION = re.compile(r"(?P<source>[^:]+):(?P<function>[A-Za-z_]\w*)\Z")


class PathError(ValueError):
    """A path that leads nowhere; the message is shown at its place in the YAML."""


def expand_environment(text: str) -> str:
    """`${env:NAME}` replaced; raises PathError where NAME is not set."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise PathError(f"the environment variable {name} is not set")
        return os.environ[name]

    return ENVIRONMENT.sub(value, text)


def looks_local(text: str) -> bool:
    """Whether a name can only be a local path: it begins with `.`, `/`, `~` or `${env:`."""
    return text.startswith(("./", "../", "/", "~", "${env:"))


def names_function(value: Any) -> bool:
    """Whether a value names a user's own function (a plug-in)."""
    return isinstance(value, str) and bool(FUNCTION.match(value))


def find(text: str, beside: Path) -> list[Path]:
    """The files or folders that `text` (a path or glob) stands for, absolute and sorted.

    A relative one is looked for in the current folder, beside the file that names it, and in the folder above that (the
    project, where the file lies in `configs/`). Raises PathError.
    """
    if "\0" in text:
        raise PathError("no path holds a zero character")
    expanded = os.path.expanduser(expand_environment(text))
    rooms = [Path("/")] if os.path.isabs(expanded) else [Path.cwd(), beside, beside.parent]
    places = [room / expanded for room in rooms]
    for place in places:
        if place.exists():
            return [Path(os.path.abspath(place))]
        found = sorted(glob.glob(str(place), recursive=True)) if glob.has_magic(expanded) else []
        if found:
            return [Path(os.path.abspath(each)) for each in found]
    tried = " or ".join(dict.fromkeys(str(Path(os.path.abspath(place)).parent) for place in places))
    what = "no file matches" if glob.has_magic(expanded) else "there is no"
    raise PathError(f"{what} {expanded} (looked in {tried})")
