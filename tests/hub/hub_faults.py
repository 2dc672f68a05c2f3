"""What goes wrong at the test Hub, as a test wants it."""

import json
import os
import re
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE, DONE = "faults.json", "faults_done.json"
#: status         answer so, and do nothing
#: reset-upload   cut the connection when half of the body has come
#: cut-answer     do as asked, and cut the connection in the middle of the answer
#: lose-answer    do as asked, and cut the connection before the answer
#: hang           wait, then do as asked
#: hang-after     do as asked, wait, then answer
#: disk-full      there is no room for what this request writes; answered by `status`
KINDS = ("status", "reset-upload", "cut-answer", "lose-answer", "hang", "hang-after", "disk-full")


@dataclass
class Fault:
    """Befalls `times` of the requests whose method and path match, after the first `skip` of them."""

    do: str
    method: str = "*"
    #: a regular expression, searched in the path and query as they came
    path: str = ""
    skip: int = 0
    times: int = 1
    #: 500, or 507 where the disk is full, unless it is given
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "told to"
    seconds: float = 60.0
    #: how many requests matched, and how many of them it befell
    seen: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        if self.do not in KINDS:
            raise ValueError(f"fault {self.do!r}: one of {', '.join(KINDS)}")
        self.status = self.status or (507 if self.do == "disk-full" else 500)

    def matches(self, method: str, path: str) -> bool:
        return self.method in ("*", method) and re.search(self.path, path) is not None

    @property
    def due(self) -> bool:
        """Whether it befalls the request that was seen last."""
        return self.seen > self.skip and self.done < self.times


class Faults:
    """Those that were added in this process, and those of FOLDER/faults.json.

    The file is read again whenever it is replaced, and its counts begin anew then, as they do when the server is
    started again. They are told by FOLDER/faults_done.json.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.added: list[Fault] = []
        self.told: list[Fault] = []
        self.lock = threading.Lock()
        self._read: Any = None

    def add(self, do: str, method: str = "*", path: str = "", **more: Any) -> Fault:
        """The fault; its `done` counts."""
        fault = Fault(do, method, path, **more)
        with self.lock:
            self.added.append(fault)
        return fault

    def take(self, method: str, path: str) -> Fault | None:
        """The first that befalls this request. All that match it have seen it."""
        with self.lock:
            self._look()
            matching = [fault for fault in self.added + self.told if fault.matches(method, path)]
            for fault in matching:
                fault.seen += 1
            taken = next((fault for fault in matching if fault.due), None)
            if taken:
                taken.done += 1
            if self.told:
                _replace(self.folder / DONE, {"of": self._read, "done": [fault.done for fault in self.told]})
            return taken

    def _look(self) -> None:
        mark = _mark(self.folder)
        if mark != self._read:
            self.told = [Fault(**each) for each in json.loads((self.folder / FILE).read_text())] if mark else []
            self._read = mark


def tell_faults(folder: Path, *faults: Fault) -> None:
    """Replace the faults of a server in another process over this folder."""
    told = [{name: value for name, value in asdict(each).items() if name not in ("seen", "done")} for each in faults]
    _replace(folder / FILE, told)


def faults_done(folder: Path) -> list[int]:
    """How often each of the told faults came so far."""
    told = json.loads((folder / FILE).read_text())
    if (folder / DONE).exists():
        found = json.loads((folder / DONE).read_text())
        if found["of"] == _mark(folder):
            return found["done"]
    return [0] * len(told)


def _mark(folder: Path) -> list[int] | None:
    """What tells one writing of the file from the next."""
    try:
        now = (folder / FILE).stat()
    except FileNotFoundError:
        return None
    return [now.st_ino, now.st_mtime_ns]


def _replace(path: Path, value: Any) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new.write_text(json.dumps(value))
    new.replace(path)
