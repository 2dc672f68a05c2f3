"""What a run was made of: its steps back to their sources, and what it scored."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cdpo.files import read_json
from cdpo.step import Step
from cdpo.store import Store


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

    @classmethod
    def of(cls, store: Store, step: Step, run: str, tag: str) -> Self:
        """The lineage of what `step` reads."""
        from cdpo.report.collect import collect_run

        found = cls(run, tag)
        seen: set[str] = set()
        for given in read_json(step.work / "step.json")["planned"].values():
            found._follow(store, given, seen)
        for ref in store.read_refs(tag):
            if ref["name"] == run:
                found.ref = ref
                entry = collect_run(store, ref)
                found.metrics, found.marks = entry["metrics"], entry["marks"]
        return found

    def _follow(self, store: Store, given: dict[str, Any], seen: set[str]) -> None:
        key = given.get("step")
        if key is None or key in seen:
            return
        seen.add(key)
        folder = store.find(key)
        if folder is None:
            return
        manifest = store.manifest(folder)
        for parent in manifest["inputs"].values():
            self._follow(store, parent, seen)
        self.steps.append(manifest)

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


def source_text(given: dict[str, Any]) -> str:
    """A source as a card names it: nothing of this machine but a file's name."""
    ran = ", whose own code was run" if given.get("trusted") else ""
    if "hub" in given:
        part = "".join(f", {name} {given[name]}" for name in ("config", "split") if given.get(name))
        return f"{given['kind']} {given['hub']} at commit {given['revision']}{part}{ran}"
    if "built" in given:
        return f"made by cdpo: {given['built']}"
    if "plugin" in given:
        path, _, function = given["plugin"].rpartition(":")
        return f"{Path(path).name}:{function}, sha256 {given['sha256']}"
    if "files" in given:
        names = ", ".join(Path(path).name for path in given["files"][:5])
        return f"{names}{' and more' if len(given['files']) > 5 else ''}, sha256 {given['sha256']}"
    return f"{Path(given['folder']).name}, sha256 {given['sha256']}{ran}"
