"""From a number to the steps that made it: what each was hashed from, what it left, how it is made again."""

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.engine.status import latest_log
from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.hub.lineage import source_text
from cdpo.pipeline import metric_name, pipelines
from cdpo.plan.names import show_value
from cdpo.plan.states import differences
from cdpo.report.board import UNKNOWN, Board
from cdpo.report.collect import collect_run
from cdpo.report.reading import EVALUATIONS
from cdpo.store import Store
from cdpo.store.names import short

if TYPE_CHECKING:
    from cdpo.config.params import Params

#: what describes a step that `features` and `differences` can read
DESCRIBES = frozenset(("params", "inputs", "version"))
#: bytes of a log's end of which the last lines are shown
END = 1 << 17


@dataclass(frozen=True)
class Node:
    """A step as the store tells of it."""

    key: str
    pipeline: str
    name: str
    #: one of cdpo/report/board.py's STATES
    state: str
    #: of a finished step, or of the work on one that is not; None where there is neither
    folder: Path | None
    #: its manifest; None where it is not finished, or the manifest is damaged
    manifest: dict[str, Any] | None
    #: what it is hashed from, as a manifest has it: params, inputs, seed, version; None where nothing tells
    described: dict[str, Any] | None
    #: why it is damaged, or how it failed; empty for none
    problem: str = ""

    @property
    def label(self) -> str:
        return f"{self.pipeline}/{self.name}-{short(self.key)}" if self.name else f"{self.pipeline} {short(self.key)}"

    @property
    def parents(self) -> dict[str, str]:
        """role -> key of the step that made what stands there."""
        inputs = (self.described or {}).get("inputs", {})
        return {role: given["step"] for role, given in inputs.items() if "step" in given}


@dataclass(frozen=True)
class Figure:
    """One number of a run, and the step that measured it."""

    name: str
    #: mean, low, high (None: no interval), n, split, conditional_on
    value: dict[str, Any]
    key: str


class Provenance:
    """The steps of a store, each read once. `board` says what they are doing."""

    def __init__(self, store: Store, board: Board) -> None:
        self.store, self.board = store, board
        self._folders = store.finished()
        self._nodes: dict[str, Node] = {}

    def find(self, text: str) -> str | None:
        """The whole key of a step by its first 12 digits (or more); None where the store knows none."""
        start = short(text)
        if len(start) < len(short("0" * 64)):
            return None
        known = next((key for key in self.board.steps if key.startswith(start)), None)
        folder = self._folders.get(start)
        if known is not None or folder is None:
            return known
        described = _read(folder / "manifest.json") or _read(folder / "step.json") or {}
        return str(described.get("key", start))

    def node(self, key: str) -> Node:
        """A step; one that is neither planned nor there is `missing`."""
        if key not in self._nodes:
            self._nodes[key] = self._node(key)
        return self._nodes[key]

    def _node(self, key: str) -> Node:
        planned, said = self.board.planned.get(key), self.board.steps.get(key)
        described: dict[str, Any] | None = None
        if planned is not None and planned.version:
            described = {name: getattr(planned, name) for name in ("params", "inputs", "seed", "version")}
        pipeline, name = (planned.pipeline, planned.name) if planned is not None else (UNKNOWN, "")
        folder = self._folders.get(short(key))
        if folder is not None:
            pipeline, name = folder.parent.name, folder.name.removesuffix(f"-{short(key)}")
            problem = self.store.intact(folder) or ""
            try:
                manifest: dict[str, Any] | None = self.store.manifest(folder)
            except (OSError, DamagedFile):
                manifest = None
            state = "damaged" if problem else "evicted" if self.store.is_evicted(folder) else "done"
            left = _description(manifest) or _description(_of_work(folder / "step.json")) or described
            return Node(key, pipeline, name, state, folder, manifest, left, problem)
        work = self.store.work(key)
        left = described or _description(_of_work(work / "step.json"))
        problem = str(said.get("error") or said.get("by") or "") if said else ""
        return Node(
            key,
            pipeline,
            name,
            said["state"] if said else "missing",
            work if work.is_dir() else None,
            None,
            left,
            problem,
        )

    def behind(self, keys: Iterable[str]) -> list[Node]:
        """These steps and all that they were made from, parents before children."""
        found: dict[str, Node] = {}
        stack = [(key, False) for key in reversed(list(keys))]
        while stack:
            key, ready = stack.pop()
            if key in found:
                continue
            node = self.node(key)
            if ready:
                found[key] = node
            else:
                stack.append((key, True))
                stack.extend((parent, False) for parent in reversed(node.parents.values()) if parent not in found)
        return list(found.values())

    def others(self, node: Node) -> list[Node]:
        """The other steps of its pipeline that are planned or there, what is made of the same but for less first."""
        keys = [key for key, step in self.board.planned.items() if step.pipeline == node.pipeline]
        known = {short(key) for key in keys}
        for start, folder in self._folders.items():
            if folder.parent.name == node.pipeline and start not in known:
                keys.append(self.find(start) or start)
        found = [self.node(key) for key in keys if short(key) != short(node.key)]
        told = [each for each in found if each.described is not None]
        if node.described is None:
            return told
        mine = node.described
        return sorted(told, key=lambda each: len(differences(mine, each.described or {})))

    def runs_with(self, key: str) -> list[str]:
        """Labels of the runs that this step is a part of."""
        return [row.label for row in self.board.rows if key in row.steps]

    def figures(self, ref: Mapping[str, Any]) -> list[Figure]:
        """The numbers of a run, in the order of `cdpo results`, each with the step that measured it."""
        values = collect_run(self.store, dict(ref))["metrics"]
        measured = self._measured(ref)
        return [Figure(name, value, measured[name]) for name, value in values.items() if name in measured]

    def _measured(self, ref: Mapping[str, Any]) -> dict[str, str]:
        """metric -> key, by the rules of cdpo/report/reading.py: of two steps that have it the later one, and what the
        run's training measured before all."""
        labels = ref.get("labels", {})
        found: dict[str, str] = {}
        trained: dict[str, str] = {}
        for key in ref["steps"]:
            node = self.node(key)
            pipeline = pipelines().get(node.pipeline)
            if pipeline is None or node.manifest is None or node.state == "damaged":
                continue
            summary = node.manifest.get("summary") or {}
            names = [*pipeline.metrics, *summary.get("metrics", {})]
            if pipeline.name == ref["method"]:
                trained = dict.fromkeys(names, key)
            if pipeline.gives in EVALUATIONS:
                names += summary.get("figures", {})
                found |= {metric_name(name, labels.get(key)): key for name in names}
        return found | trained


@dataclass(frozen=True)
class Hashed:
    """One of the things that decide a step's key."""

    #: `setting`, `input`, `seed` or `version`
    kind: str
    name: str
    value: str
    #: whether it is what the code gives where nobody says anything else; such a setting is left out of the hash
    default: bool = False


def hashed(node: Node, label: Callable[[str], str]) -> list[Hashed]:
    """What a step is made from: what was chosen first, what was left as it is last. `label` names a step by its key."""
    if node.described is None:
        return []
    given = node.described
    found = [
        Hashed("input", role, f"{label(each['step'])}" if "step" in each else source_text(each))
        for role, each in given["inputs"].items()
    ]
    known = pipelines().get(node.pipeline)
    settings = [
        Hashed("setting", name, as_told(value), known is not None and _is_default(known.params, name, value))
        for name, value in given["params"].items()
    ]
    if given.get("seed") is not None:
        found.append(Hashed("seed", "seed", str(given["seed"])))
    found.append(Hashed("version", f"version of {node.pipeline}", str(given["version"])))
    return [*(one for one in settings if not one.default), *found, *(one for one in settings if one.default)]


def as_told(value: Any) -> str:
    """A value with nothing left out, where a name would drop brackets and quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else show_value(value)


def _is_default(params: "type[Params]", name: str, value: Any) -> bool:
    field = params.model_fields.get(name)
    if field is None or field.is_required():
        return False
    default = field.get_default(call_default_factory=True, validated_data={})
    dump = getattr(default, "model_dump", None)
    return bool((dump() if dump else default) == value)


def rebuilt_by(node: Node, in_a_run: bool) -> list[tuple[str, str]]:
    """Commands about the step, and what each does."""
    key = short(node.key)
    if node.folder is None or node.manifest is None or node.state == "damaged":
        return [("cdpo execute", "makes the step, and what it needs")]
    place = shlex.quote(str(node.folder))
    again = [(f"cdpo reproduce {place} --to rebuilt", "writes a project that makes it again, and compares")]
    return [
        *(again if in_a_run else []),
        (f"cdpo redo {key}", "sets it aside here; the next `cdpo execute` makes it again"),
        (f"cdpo why {key}", "what it was hashed from, in the terminal"),
    ]


def log_of(node: Node) -> Path | None:
    """The log of a finished step, or of the last attempt at it; None where there is none."""
    return latest_log(node.folder) if node.folder is not None and node.folder.is_dir() else None


def last_lines(log: Path, most: int) -> tuple[list[str], bool]:
    """The last lines of a log, and whether these are all. However long it is, little of it is read."""
    with open(log, "rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - END))
        lines = stream.read().decode(errors="replace").splitlines()
    return lines[-most:], size <= END and len(lines) <= most


def members(label: str, labels: Sequence[str]) -> list[str]:
    """The runs that a label stands for: itself, or those of a configuration, which have its name and a seed."""
    return [each for each in labels if each == label or re.sub(r"_s\d+$", "", each) == label]


def _description(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return dict(found) if found is not None and found.keys() >= DESCRIBES else None


def _of_work(path: Path) -> dict[str, Any] | None:
    """A step.json in the words of a manifest: its inputs as they were planned."""
    found = _read(path)
    return {**found, "inputs": found["planned"]} if found is not None and "planned" in found else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (OSError, DamagedFile):
        return None
    return found if isinstance(found, dict) else None
