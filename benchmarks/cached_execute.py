"""`cdpo execute` where everything is finished: CPU seconds of the whole command, outputs stat'ed.

    python benchmarks/cached_execute.py [RUNS]

The store is filled with made-up artifacts of the matrix (a manifest and two small files each); nothing is trained.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from _machine import print_machine

from cdpo.plan.graph import Plan
from cdpo.project import Project

ROUNDS = 5


def tasks(runs: int) -> str:
    """A matrix of so many runs, each with a DPO, a GEN and an EVALREWARD step of its own."""
    betas = ", ".join(str(round(0.001 * number, 6)) for number in range(1, runs // 2 + 1))
    return f"""\
tag: cached
pipelines: [SFT, RM, DPO, GEN, EVALREWARD]
model: [tiny]
dataset: [playground]
seed: [0, 1]
tasks: [{{pipeline: DPO, beta: [{betas}]}}]
"""


def fill(project: Project, plan: Plan) -> None:
    """Make every step look finished."""
    files = {"model.safetensors": b"0" * 100, "scores.parquet": b"0" * 50}
    for step in plan.steps.values():
        folder = project.store.place(step.pipeline, step.name, step.key)
        (folder / "out").mkdir(parents=True)
        for name, content in files.items():
            (folder / "out" / name).write_bytes(content)
        outputs = {name: {"size": len(content), "sha256": "0"} for name, content in files.items()}
        manifest = {**vars(step), "seconds": 1.0, "code": "", "outputs": outputs, "summary": {}}
        (folder / "manifest.json").write_text(json.dumps(manifest))


def main(runs: int) -> None:
    print_machine()
    with tempfile.TemporaryDirectory() as room:
        configs = Path(room) / "configs"
        configs.mkdir()
        (configs / "tasks.yaml").write_text(tasks(runs))
        project = Project.at(str(configs), str(Path(room) / "store"), None)
        plan = project.plan()
        fill(project, plan)
        project.freeze(plan, {"lengths": {}})
        command = [sys.executable, "-m", "cdpo.cli", "--configs", str(configs), "--store", str(project.store.root)]
        figures = []
        for _ in range(ROUNDS):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([*command, "execute"], capture_output=True, text=True, check=True, env=os.environ)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            figures.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        print(done.stdout.strip())
    print(
        f"{len(plan.runs)} runs, {len(plan.steps)} steps: {statistics.median(figures):.2f} CPU s (median of {ROUNDS})"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
