"""How a run is made again: its steps with every value, and the tasks file that gives the same keys.

`cdpo.json`, which is published beside a model and its responses:

    {"format": 1, "cdpo": VERSION, "run", "tag", "method", "model", "dataset", "seed",
     "steps": [{"pipeline", "name", "key", "version", "params", "inputs", "seed"}, ...], "metrics": {...}}

`inputs` are those of cdpo/plan/graph.py, with the names of files and folders alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdpo.config.values import REWARD, SEED
from cdpo.errors import CdpoError
from cdpo.hub.lineage import Lineage
from cdpo.pipeline import MIXTURE, PREP, pipelines

RECIPE = "cdpo.json"
FORMAT = 1
#: inputs that are functions of a user's own, and the parameters that name them
PLUGINS = {"rule_plugin": "rule", "reward_plugin": REWARD, "loss_plugin": "loss_type"}


def recipe_of(lineage: Lineage) -> dict[str, Any]:
    names = ("pipeline", "name", "key", "version", "params", "seed")
    steps = [
        {
            **{name: each[name] for name in names},
            "inputs": {role: _bare(given) for role, given in each["inputs"].items()},
        }
        for each in lineage.steps
    ]
    return {
        "format": FORMAT,
        "cdpo": lineage.steps[-1]["versions"]["cdpo"],
        "run": lineage.run,
        "tag": lineage.tag,
        **{name: lineage.ref.get(name) for name in ("method", "model", "dataset", "seed")},
        "steps": steps,
        "metrics": lineage.metrics,
    }


def _bare(given: Mapping[str, Any]) -> dict[str, Any]:
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


class Retold:
    """A recipe as a tasks file. Raises CdpoError where it is of a kind that is not written yet."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self.recipe = recipe
        self.steps = {step["key"]: step for step in recipe["steps"]}
        #: files and folders that must be there: name -> sha256
        self.local: dict[str, str] = {}
        #: models whose own code was run
        self.trusted: dict[str, None] = {}
        self.models: dict[str, Any] = {}
        self.datasets: dict[str, Any] = {}
        self.rewards: dict[str, Any] = {}

    def tasks(self) -> dict[str, Any]:
        """The content of the tasks file."""
        recipe, known = self.recipe, pipelines()
        experiment: dict[str, Any] = {"tag": recipe["tag"], "pipelines": []}
        experiment |= {"model": [recipe["model"]], "dataset": [recipe["dataset"]], "seed": [recipe["seed"]]}
        task: dict[str, Any] = {"pipeline": recipe["method"]}
        for step in recipe["steps"]:
            pipeline = known[step["pipeline"]]
            if pipeline.brought or step["pipeline"] == MIXTURE:
                continue
            values = self._values(step)
            if step["pipeline"] == PREP:
                self._dataset(step, values)
                continue
            if pipeline.stage:
                experiment["pipelines"].append(step["pipeline"])
            if step["pipeline"] == recipe["method"]:
                task |= values
            elif values:
                experiment[step["pipeline"]] = values
            self._model(step)
        experiment["pipelines"] = list(dict.fromkeys(experiment["pipelines"]))
        experiment["tasks"] = [task]
        tables = {"models": self.models, "datasets": self.datasets, "rewards": self.rewards}
        return {**{name: table for name, table in tables.items() if table}, "experiments": [experiment]}

    def _values(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a step that are not the defaults in the code, as a tasks file writes them."""
        params = pipelines()[step["pipeline"]].params.model_validate(step["params"])
        values = params.model_dump(exclude_defaults=True)
        values = {name: [value] if isinstance(value, list) else value for name, value in values.items()}
        if step["seed"] is not None and step["seed"] != self.recipe["seed"]:
            values[SEED] = step["seed"]
        for role, given in step["inputs"].items():
            if role in PLUGINS:
                values[PLUGINS[role]] = self._plugin(given)
        if REWARD in pipelines()[step["pipeline"]].takes.values() and "reward_plugin" not in step["inputs"]:
            reward = self._reward(step)
            values |= {REWARD: reward} if reward is not None else {}
        return values

    def _plugin(self, given: Mapping[str, Any]) -> str:
        source, _, function = given["plugin"].rpartition(":")
        if not source.endswith(".py"):
            return str(given["plugin"])
        self.local[source] = given["sha256"]
        return f"./{source}:{function}"

    def _reward(self, step: Mapping[str, Any]) -> Any:
        adapter = step["inputs"].get("reward_adapter")
        given = adapter or step["inputs"].get(REWARD)
        if given is None:
            return None
        if "step" in given:
            trained = self.steps[given["step"]]
            return {"step": trained["pipeline"], **({SEED: trained["seed"]} if trained["seed"] is not None else {})}
        name = f"reward-{step['pipeline'].lower()}"
        self.rewards[name] = self._entry(given)
        return name

    def _model(self, step: Mapping[str, Any]) -> None:
        given = step["inputs"].get("model")
        if given is None or "step" in given:
            return
        adapter = step["inputs"].get("model_adapter", {})
        entry = self._entry(adapter if "hub" in adapter else given)
        if self.models.setdefault(self.recipe["model"], entry) != entry:
            raise CdpoError(f"{self.recipe['run']} is made of several models, which no tasks file is written for yet")

    def _entry(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if "built" in given:
            return {"build": given["built"]}
        # a recipe may be anybody's: that its maker let code run is no reason to run it here
        if given.get("trusted"):
            self.trusted[given.get("hub") or given["folder"]] = None
        if "hub" in given:
            return {"id": f"{given['hub']}@{given['revision']}"}
        self.local[given["folder"]] = given["sha256"]
        return {"path": f"./{given['folder']}"}

    def _dataset(self, step: Mapping[str, Any], values: dict[str, Any]) -> None:
        entry: dict[str, Any] = {name: value[0] if isinstance(value, list) else value for name, value in values.items()}
        entry.setdefault("rule", step["params"]["rule"])
        for role, word in (("source", ""), ("source_eval", "eval_")):
            given = step["inputs"].get(role)
            if given is None:
                continue
            if "hub" in given:
                entry |= {"id": f"{given['hub']}@{given['revision']}", f"{word}split": given["split"]}
                entry |= {"config": given["config"]} if given.get("config") else {}
            elif len(given["files"]) == 1:
                self.local[given["files"][0]] = given["sha256"]
                entry[f"{word}path"] = f"./{given['files'][0]}"
            else:
                raise CdpoError(f"{step['name']} is made of {len(given['files'])} files: put them into one by hand")
        golds = {each["params"].get("gold") for each in self.recipe["steps"]} - {None}
        entry |= {"gold": golds.pop()} if golds else {}
        if self.datasets:
            raise CdpoError(f"{self.recipe['run']} is made of several datasets, which no tasks file is written for yet")
        self.datasets[self.recipe["dataset"]] = entry
