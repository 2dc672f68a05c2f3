"""What the viewer reads of a published run, beside the responses or the model: the run and its steps, without weights.

    viewer/run.json                                 the run, as refs/<tag>/<run>.json of a store has it
    viewer/steps/<PIPELINE>/<name>-<key12>/         manifest.json, metrics.jsonl, out/{scores,verdicts}.parquet

of all steps from the sources to what is published. A manifest there lists the files that lie there, and says nothing
of the machine's name, its folders or its processes. `cdpo.hub.mirror` makes a store of it again.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdpo.hub.lineage import Lineage, bare_name
from cdpo.hub.recipe import bare_input
from cdpo.score.scores import FILE, SAMPLES
from cdpo.store import Store

ROOM = "viewer"
RUN = "run.json"
#: tables of a step that are published, small beside the responses
TABLES = (FILE, SAMPLES, "verdicts.parquet")
_TOLD = ("key", "pipeline", "name", "version", "params", "seed", "started", "finished", "seconds", "code", "versions")
#: what is told of the machine
_HOST = ("system", "cpu", "cpus")
#: a text that is nothing but a place on this machine, in some folder
_PLACE = re.compile(r"(~[^/\n]*|/[^/\n]+)/[^\n]*")


def viewer_files(store: Store, lineage: Lineage) -> dict[str, Path | bytes]:
    """Path in the published folder -> the file, or its content."""
    there = {each["key"]: each for each in lineage.steps}
    names = ("seed", "method", "params", "marks", "recipe", "labels", "select")
    run = {
        "name": lineage.run,
        "tag": lineage.tag,
        **{name: lineage.ref[name] for name in names if name in lineage.ref},
        **{name: bare_name(lineage.ref.get(name)) for name in ("model", "dataset")},
        "steps": [key for key in lineage.ref.get("steps", ()) if key in there],
    }
    files: dict[str, Path | bytes] = {f"{ROOM}/{RUN}": _json(_bare(run))}
    for key, manifest in there.items():
        folder = store.find(key)
        assert folder is not None, key
        place = f"{ROOM}/steps/{manifest['pipeline']}/{folder.name}"
        tables = [name for name in TABLES if (folder / "out" / name).exists()]
        files[f"{place}/manifest.json"] = _json(_told(manifest, tables))
        files |= {f"{place}/out/{name}": folder / "out" / name for name in tables}
        if (folder / "metrics.jsonl").exists():
            files[f"{place}/metrics.jsonl"] = folder / "metrics.jsonl"
    return files


def _told(manifest: Mapping[str, Any], tables: list[str]) -> dict[str, Any]:
    host = {name: value for name, value in (manifest.get("host") or {}).items() if name in _HOST}
    return {
        **{name: _bare(manifest[name]) for name in _TOLD if name in manifest},
        "inputs": {role: bare_input(given) for role, given in manifest["inputs"].items()},
        "host": host,
        "summary": _bare(manifest.get("summary")),
        "outputs": {name: manifest["outputs"][name] for name in tables},
    }


def _bare(value: Any) -> Any:
    """Without the folders of places on this machine: `/home/ada/judge.py:wordy` becomes `./judge.py:wordy`."""
    if isinstance(value, dict):
        return {name: _bare(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_bare(each) for each in value]
    return f"./{value.rstrip('/').rpartition('/')[2]}" if isinstance(value, str) and _PLACE.fullmatch(value) else value


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
