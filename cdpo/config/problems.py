"""Everything wrong in a configuration, found in one go and shown with its place.

Each problem is one line `FILE:LINE:COL: PATH: message` (1-based) with the source line and a caret below it.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cdpo.errors import UsageError

#: where a value lies inside a YAML document: keys and list indices from the top
YamlPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    file: str
    #: 1-based; the key for an unknown or missing key, the value otherwise
    line: int
    col: int
    path: YamlPath
    message: str
    #: True where the line may hold a secret, so that it is not shown
    secret: bool = False

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.col}: {show_path(self.path)}"
        return _one_line(f"{where}: {self.message}")


class ConfigError(UsageError):
    """All problems of the configuration at once; exit 2, nothing was run or written."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems), key=lambda each: (each.file, each.line, each.col, each.message))
        sources: dict[str, list[str]] = {}
        super().__init__("\n".join(_with_source(problem, sources) for problem in self.problems))


def show_path(path: YamlPath) -> str:
    """`("tasks", 0, "beta")` as `tasks[0].beta`; the document itself as `(top)`."""
    shown = ""
    for part in path:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else str(part)
    return shown or "(top)"


def suggest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'rho'?)`, or the list of what there is where nothing is near."""
    names = list(known)
    # `lr` is meant for learning_rate, however near its letters are to another name's
    near = [name for name in names if "_" in name and word == "".join(part[:1] for part in name.split("_"))]
    near = near or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:
        lowered = {name.lower(): name for name in names}
        near = [lowered[word.lower()]] if word.lower() in lowered else []
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (there is: {_shortened(names)})" if names else ""


def _shortened(names: Sequence[str], limit: int = 30) -> str:
    more = f", ... {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _one_line(text: str) -> str:
    """A problem is one line, whatever a user's keys and values hold."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _with_source(problem: Problem, sources: dict[str, list[str]]) -> str:
    """The problem with its line and a caret; `sources` keeps the lines of files that were read before."""
    if problem.secret:
        return str(problem)
    if problem.file not in sources:
        try:
            sources[problem.file] = Path(problem.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            sources[problem.file] = []
    lines = sources[problem.file]
    if problem.line > len(lines) or len(lines[problem.line - 1]) > 160:
        return str(problem)
    return f"{problem}\n    {lines[problem.line - 1]}\n    {' ' * (problem.col - 1)}^"
