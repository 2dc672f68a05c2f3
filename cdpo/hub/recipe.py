"""How a run is made again: its steps with every value, and the tasks file that gives the same keys.

`cdpo.json`, which is published beside a model and its responses:

    {"format": 1, "cdpo": VERSION, "run", "tag", "method", "model", "dataset", "seed",
     "params", "steps": [{"pipeline", "name", "key", "version", "params", "inputs", "seed"}, ...], "metrics": {...}}

with `"labels": {KEY: NAME}` where several rewards score the run. `params` are those that the run's name carries;
`inputs` those of cdpo/plan/graph.py, with the names of files and folders alone. How a tasks file is made of it:
cdpo/hub/retold.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdpo.hub.lineage import Lineage, bare_name

RECIPE = "cdpo.json"
FORMAT = 1


def recipe_of(lineage: Lineage) -> dict[str, Any]:
    names = ("pipeline", "name", "key", "version", "params", "seed")
    steps = [
        {
            **{name: each[name] for name in names},
            "inputs": {role: bare_input(given) for role, given in each["inputs"].items()},
        }
        for each in lineage.steps
    ]
    return {
        "format": FORMAT,
        "cdpo": lineage.steps[-1]["versions"]["cdpo"],
        "run": lineage.run,
        "tag": lineage.tag,
        **{name: lineage.ref.get(name) for name in ("method", "seed", "params")},
        **{name: bare_name(lineage.ref.get(name)) for name in ("model", "dataset")},
        **({"labels": lineage.ref["labels"]} if lineage.ref.get("labels") else {}),
        "steps": steps,
        "metrics": lineage.metrics,
    }


def bare_input(given: Mapping[str, Any]) -> dict[str, Any]:
    """An input without the places of this machine."""
    found = dict(given)
    if "hub" in found:
        found.pop("files", None)
        found.pop("folder", None)
    if "files" in found:
        found["files"] = [Path(path).name for path in found["files"]]
    if "folder" in found:
        found["folder"] = Path(found["folder"]).name
    if "plugin" in found:
        path, _, function = found["plugin"].rpartition(":")
        found["plugin"] = f"{Path(path).name if path.endswith('.py') else path}:{function}"
    return found
