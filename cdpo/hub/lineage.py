"""What a run was made of: its steps back to their sources, and what it scored."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cdpo.config.paths import looks_local
from cdpo.files import read_json, read_json_lines
from cdpo.pipeline import MIXTURE, PREP, pipelines
from cdpo.step import Step
from cdpo.store import Store

#: what a step's data stands behind, in the order in which it is looked for
_DATA = ("data", "labelled")
#: where a step has the model that it trains or runs: an adapter before the weights under it
_MODEL = ("model_adapter", "model")


@dataclass
class Lineage:
    run: str
    tag: str
    #: manifests of finished steps, parents before children
    steps: list[dict[str, Any]] = field(default_factory=list)
    #: metric -> {"mean", "low", "high", "n", ...} as `cdpo results --json` has it
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    #: of the run, as its ref has it: method, model, dataset, seed, params
    ref: dict[str, Any] = field(default_factory=dict)
    #: key -> the lines of the step's metrics.jsonl, of the steps that have any
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, step: Step, run: str, tag: str) -> Self:
        """The lineage of what the PUSH step `step` reads."""
        ref = next((ref for ref in store.read_refs(tag) if ref["name"] == run), {})
        planned = read_json(step.work / "step.json")["planned"].values()
        return cls._gathered(store, [each["step"] for each in planned if "step" in each], run, tag, ref)

    @classmethod
    def of_run(cls, store: Store, ref: dict[str, Any]) -> Self:
        """The lineage of a run that is in the store, but for the steps that publish it."""
        finished = {key: folder for key in ref["steps"] if (folder := store.find(key)) is not None}
        keys = [key for key, folder in finished.items() if not pipelines()[folder.parent.name].publishes]
        return cls._gathered(store, keys, ref["name"], ref["tag"], ref)

    @classmethod
    def _gathered(cls, store: Store, keys: list[str], run: str, tag: str, ref: dict[str, Any]) -> Self:
        from cdpo.report.collect import collect_run

        found = cls(run, tag, ref=ref)
        seen: set[str] = set()
        for key in keys:
            found._follow(store, key, seen)
        if ref:
            entry = collect_run(store, ref)
            found.metrics, found.marks = entry["metrics"], entry["marks"]
        return found

    def _follow(self, store: Store, key: str | None, seen: set[str]) -> None:
        if key is None or key in seen:
            return
        seen.add(key)
        folder = store.find(key)
        if folder is None:
            return
        manifest = store.manifest(folder)
        for parent in manifest["inputs"].values():
            self._follow(store, parent.get("step"), seen)
        self.steps.append(manifest)
        if points := list(read_json_lines(folder / "metrics.jsonl")):
            self.curves[manifest["key"]] = points

    def step(self, given: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The manifest of the step that makes an input; None where none does."""
        key = (given or {}).get("step")
        return next((manifest for manifest in self.steps if manifest["key"] == key), None)

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """The steps that trained the run's model, the first one first; empty of a model as it was named."""
        method = self.ref.get("method")
        at = next((each for each in reversed(self.steps) if each["pipeline"] == method), None)
        found: list[dict[str, Any]] = []
        while at is not None:
            found.append(at)
            inputs = at["inputs"]
            at = next((step for role in _MODEL if (step := self.step(inputs.get(role))) is not None), None)
        return found[::-1]

    def data_of(self, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """The step that prepared what a step reads, or the mixture of several."""
        given = next((manifest["inputs"][role] for role in _DATA if role in manifest["inputs"]), None)
        found = self.step(given)
        if found is None or found["pipeline"] in (PREP, MIXTURE):
            return found
        return self.data_of(found)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """What the steps read that no step made: hub repositories, files, folders, what cdpo built."""
        found: dict[str, dict[str, Any]] = {}
        for manifest in self.steps:
            for role, given in manifest["inputs"].items():
                if "step" not in given:
                    found.setdefault(str(sorted(given.items(), key=str)), {"role": role, **given})
        return list(found.values())

    @property
    def seconds(self) -> float:
        return float(sum(manifest["seconds"] for manifest in self.steps))


def bare_name(name: str | None) -> str | None:
    """The name of a model or dataset without the places of this machine."""
    return f"./{Path(name).name}" if name is not None and looks_local(name) else name


def source_text(given: dict[str, Any]) -> str:
    """A source as a card names it: nothing of this machine but a file's name."""
    ran = ", whose own code was run" if given.get("trusted") else ""
    if "hub" in given:
        part = "".join(f", {name} {given[name]}" for name in ("config", "split") if given.get(name))
        return f"{given['kind']} {given['hub']} at commit {given['revision']}{part}{ran}"
    if "built" in given:
        return "made by cdpo: " + ", ".join(f"{name} {value}" for name, value in given["built"].items())
    if "plugin" in given:
        path, _, function = given["plugin"].rpartition(":")
        return f"{Path(path).name}:{function}, sha256 {given['sha256']}"
    if "files" in given:
        names = ", ".join(Path(path).name for path in given["files"][:5])
        return f"{names}{' and more' if len(given['files']) > 5 else ''}, sha256 {given['sha256']}"
    return f"{Path(given['folder']).name}, sha256 {given['sha256']}{ran}"
