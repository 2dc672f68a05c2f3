"""Plans of small texts, in a folder of their own, with the tables that cdpo ships unless a test brings its own."""

from pathlib import Path
from typing import Any

from cdpo.plan.build import plan_file
from cdpo.plan.graph import Plan, PlannedStep

ROWS = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


class Folder:
    """A project without a store: write files, plan texts."""

    def __init__(self, path: Path) -> None:
        self.path, self.configs, self.tasks = path, path / "configs", path / "configs" / "tasks.yaml"
        self.configs.mkdir(parents=True)

    def write(self, name: str, text: str) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    def table(self, name: str, text: str) -> None:
        self.write(f"configs/{name}", text)

    def plan(self, text: str, known: dict[str, Any] | None = None) -> Plan:
        self.tasks.write_text(text, encoding="utf-8")
        return plan_file(self.tasks, self.configs, known)

    def model(self, name: str, weights: str = "w") -> Path:
        self.write(f"{name}/model.safetensors", weights)
        return self.write(f"{name}/config.json", "{}").parent


def experiment(tasks: str, more: str = "", **changed: str) -> str:
    """A tasks file: `tasks` are its tasks, in flow style; `more` other keys, a line each."""
    keys = {"tag": "t", "pipelines": "[SFT, DPO]", "model": "[tiny]", "dataset": "[playground]", **changed}
    return "".join(f"{key}: {value}\n" for key, value in keys.items()) + f"tasks: [{tasks}]\n{more}"


def of(plan: Plan, pipeline: str) -> list[PlannedStep]:
    return [step for step in plan.steps.values() if step.pipeline == pipeline]


def counts(plan: Plan) -> dict[str, int]:
    found: dict[str, int] = {}
    for step in plan.steps.values():
        found[step.pipeline] = found.get(step.pipeline, 0) + 1
    return found


def keys(plan: Plan, *pipelines: str) -> set[str]:
    return {step.key for step in plan.steps.values() if not pipelines or step.pipeline in pipelines}
