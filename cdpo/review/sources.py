"""What of a store can be reviewed: prepared and labelled data, and what runs answered."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdpo.data.prepared import SPLITS
from cdpo.errors import UsageError
from cdpo.files import reading_parquet
from cdpo.generate.responses import FILE
from cdpo.pipeline import pipelines
from cdpo.store import Store
from cdpo.store.names import short

#: kinds of resources that are rows of prompt, chosen and rejected, and those that are single responses
DATA = ("data", "labelled")
RESPONSES = "responses"


@dataclass(frozen=True)
class Source:
    """What one finished step made."""

    #: `PIPELINE/step` or, of responses, `tag/run`
    label: str
    #: the step's, 12 digits
    key: str
    #: the step's out/
    folder: Path
    #: whether its rows are single responses, and no pairs
    single: bool
    #: of a run
    ref: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.label.partition("/")[2]

    def splits(self) -> dict[str, Path]:
        """Split -> its file; one that is no longer there has none. No row is read but the first, of responses."""
        if self.single:
            path = self.folder / FILE
            return {_first(path, "split"): path} if path.is_file() else {}
        there = {path.stem: path for path in sorted(self.folder.glob("*.parquet"))}
        return {split: there[split] for split in SPLITS if split in there}


def sources(store: Store, refs: Iterable[Mapping[str, Any]]) -> dict[str, Source]:
    """All of a store by their labels: data first, then the responses of the runs `refs`, then those of no run. What is
    published of a run has its responses, and no data."""
    known = pipelines()
    data: dict[str, Source] = {}
    answers: dict[str, Path] = {}
    for key, path in sorted(store.finished().items(), key=lambda each: each[1]):
        gives = known[path.parent.name].gives if path.parent.name in known else ""
        if gives in DATA and any((path / "out").glob("*.parquet")):
            data[_label(path, data)] = Source(_label(path, data), key, path / "out", False)
        elif gives == RESPONSES:
            answers[key] = path
    runs: dict[str, Source] = {}
    for ref in refs:
        answered = next((key for each in reversed(ref["steps"]) if (key := short(each)) in answers), None)
        if answered is not None:
            label = f"{ref['tag']}/{ref['name']}"
            runs[label] = Source(label, answered, answers[answered] / "out", True, ref)
    taken = {source.key for source in runs.values()}
    alone = {
        f"GEN/{path.name}": Source(f"GEN/{path.name}", key, path / "out", True)
        for key, path in answers.items()
        if key not in taken
    }
    return {**data, **runs, **alone}


def _label(path: Path, others: Mapping[str, Any]) -> str:
    """`PIPELINE/name` without the key, where that is the only one of its name."""
    plain = f"{path.parent.name}/{path.name[: -len(short('0' * 64)) - 1]}"
    return f"{path.parent.name}/{path.name}" if plain in others else plain


def find(store: Store, name: str) -> Source:
    """The source of that label, of that name alone, or of a step's key (12 digits or more). Raises UsageError."""
    import difflib

    known = sources(store, store.read_refs())
    found = [known[name]] if name in known else [each for each in known.values() if each.name == name]
    found = found or [each for each in known.values() if each.key == short(name)][:1]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} is the name of several; say which: {', '.join(each.label for each in found)}")
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "`cdpo execute` makes data and responses"
    raise UsageError(f"nothing in {store.root} that could be reviewed is called {name!r}; {hint}")


def _first(path: Path, column: str) -> str:
    with reading_parquet(path) as file:
        for batch in file.iter_batches(batch_size=1, columns=[column], use_threads=False):
            return str(batch.column(0)[0].as_py())
    return "eval"
