"""`configs/hub.lock.json`: which commit each name on a hub stood for when `cdpo prep` first looked it up.

    {"format": 1,
     "model Qwen/Qwen1.5-0.5B@main": {"commit": "8f44...", "files": {"config.json": 661, ...}, "speaks": true},
     "dataset openbmb/UltraFeedback@main": {"commit": "40b4...", "files": {...}, "splits": {"train": ["a.jsonl", ...]}}}

A name keeps its commit, on every machine that has this file, until its entry is taken out.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cdpo.errors import UsageError
from cdpo.files import read_json, write_json

LOCK = "hub.lock.json"
FORMAT = 1
#: a repository's id, and a branch, tag or commit of it: `ns/name`, `ns/name@v1.0`
NAME = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w][\w./+-]*))?\Z")

Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class HubName:
    """What a user names."""

    kind: Kind
    id: str
    revision: str = "main"
    #: of a dataset that has several
    config: str | None = None
    #: of a model: whether its Python files are wanted, because its entry trusts them
    code: bool = False

    @classmethod
    def parse(cls, kind: Kind, text: str, config: str | None = None) -> "HubName":
        """`ns/name` or `ns/name@revision`."""
        id_, _, revision = text.partition("@")
        return cls(kind, id_, revision or "main", config)

    def __str__(self) -> str:
        return f"{self.kind} {self.id}@{self.revision}" + (f" {self.config}" if self.config else "")


@dataclass(frozen=True)
class Pin:
    """What a name stands for."""

    #: 40 hex digits
    commit: str
    #: path in the repository -> bytes, of what is read of it
    files: Mapping[str, int]
    #: of a dataset: split -> its files
    splits: Mapping[str, list[str]] = field(default_factory=dict)
    #: of a model: whether it says how a conversation is written (by a chat template, or as a score model)
    speaks: bool = True
    #: of an adapter: the model that it is for, as `ns/name@commit`
    base: str | None = None
    #: of a model: whether its Python files are among them
    code: bool = False
    #: where its files lie, of a local hub; None: in the cache of the Hugging Face libraries
    folder: str | None = None

    def found_in(self, folder: Path) -> bool:
        """Whether a snapshot's folder holds all of it; told by names and sizes."""
        try:
            return all(os.stat(folder / name).st_size == size for name, size in self.files.items())
        except OSError:
            return False


class Lock:
    """The pins of one project."""

    def __init__(self, path: Path, pins: dict[str, Pin] | None = None) -> None:
        self.path, self.pins = path, pins or {}

    @classmethod
    def of(cls, configs: Path) -> "Lock":
        """Raises UsageError where the file is not one that this release wrote."""
        path = configs / LOCK
        if not path.exists():
            return cls(path)
        try:
            value: dict[str, Any] = read_json(path)
            if value.pop("format") != FORMAT:
                raise ValueError("another format")
            return cls(path, {name: Pin(**pin) for name, pin in value.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: cannot be read ({error}); delete it, and `cdpo prep` looks up anew") from None

    def find(self, name: HubName) -> Pin | None:
        return self.pins.get(str(name))

    def keep(self, name: HubName, pin: Pin) -> None:
        """Pin `name`, also in the file; what others pinned there meanwhile stays."""
        self.pins = {**Lock.of(self.path.parent).pins, str(name): pin}
        entries = {each: _entry(self.pins[each]) for each in sorted(self.pins)}
        write_json(self.path, {"format": FORMAT, **entries})


def _entry(pin: Pin) -> dict[str, Any]:
    entry = asdict(pin)
    if not pin.splits:
        del entry["splits"]
    if pin.speaks:
        del entry["speaks"]
    if not pin.code:
        del entry["code"]
    for name in ("base", "folder"):
        if entry[name] is None:
            del entry[name]
    return entry
