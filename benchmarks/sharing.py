"""Passes through models that the runs of a matrix share, counted and held against the fewest that would do.

    python benchmarks/sharing.py [FOLDER]

Twelve runs, two SFT models with six methods each, are made on a small playground by `cdpo execute` and scored by one
reward model. Reference: pairs of which the log-probabilities under an SFT model were computed. Reward: texts that the
evaluation scored. What was done is what the steps' manifests say; the fewest are counted in the data and in the
responses: each pair once under each SFT model, pairs of a policy's own as they come, each chosen response once, each
response of a run once. Exits with 1 where more was done. The project is left in FOLDER.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _machine import print_machine

from cdpo.data.prepared import SPLITS, read_split
from cdpo.generate.responses import read_responses

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
TASKS = """\
tag: sharing
pipelines: [SFT, RM, DPO, GEN, EVALREWARD]
model: [tiny]
dataset: [small]
seed: [0, 1]
tasks:
  - {pipeline: DPO, beta: [0.1, 0.3]}
  - {pipeline: DPO, beta: 0.1, noise_type: label_switching, noise_level: 0.3}
  - {pipeline: DR_DPO, beta: 0.1, beta_prime: 1}
  - {pipeline: DDP, beta: 0.1, r: 0.4, rho: 0.2}
  - {pipeline: DPP, beta: 0.1, p: 0.3, pi: 0.2, max_new_tokens: 8}
DPO: {learning_rate: 6e-4}
SFT: {learning_rate: 2e-3}
RM: {learning_rate: 1e-3}
GEN: {temperature: 1.0, max_new_tokens: 8}
"""

Step = tuple[dict[str, Any], Path]


def write_project(folder: Path) -> None:
    for name, text in {"tasks.yaml": TASKS, "datasets/preprocess.yaml": DATASETS}.items():
        path = folder / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def execute(folder: Path) -> dict[str, list[Step]]:
    """The finished steps by pipeline: manifest and output folder."""
    command = [sys.executable, "-m", "cdpo.cli", "execute", "--display", "plain"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout)
    found: dict[str, list[Step]] = {}
    for path in sorted((folder / ".cdpo/steps").glob("*/*/manifest.json")):
        found.setdefault(path.parent.parent.name, []).append((json.loads(path.read_text()), path.parent / "out"))
    return found


def references(steps: dict[str, list[Step]]) -> tuple[int, int, int]:
    """Pairs whose reference was computed, the fewest that would do, and those of runs that share nothing."""
    trained = [step for name in ("DPO", "DR_DPO", "DDP", "DPP") for step in steps[name]]
    computed = sum(manifest["summary"]["reference_rows"] for manifest, _ in [*steps["REFERENCE"], *trained])
    ((_, data),) = steps["PREP"]
    pairs = sum(len(read_split(data, split)) for split in SPLITS)
    policies = {manifest["inputs"]["model"]["step"] for manifest, _ in trained}
    own = sum(_sampled(manifest["summary"]) for manifest, _ in trained)
    return computed, pairs * len(policies) + own, pairs * len(trained) + own


def _sampled(summary: dict[str, Any]) -> int:
    """Pairs that a policy sampled while it was trained."""
    sail = summary.get("sail", {"realised": {}, "rows": 0})
    return round(sail["realised"].get("DPP", 0.0) * sail["rows"])


def rewards(steps: dict[str, list[Step]]) -> tuple[int, int, int]:
    """Texts that the evaluation scored, the fewest that would do, and those of runs that share nothing."""
    scored = sum(manifest["summary"]["scored"] for name in SCORING for manifest, _ in steps[name])
    chosen: set[str] = set()
    own = alone = 0
    for _, out in steps["GEN"]:
        rows = read_responses(out)
        beside = {json.dumps([row["prompt"], row["chosen"][0]["content"]]) for row in rows}
        said = {json.dumps([row["prompt"], row["response"]]) for row in rows}
        chosen |= beside
        own += len(said - beside)
        alone += len(said | beside)
    return scored, len(chosen) + own, alone


SCORING = ("EVALREWARD_CHOSEN", "EVALREWARD")


def main(folder: Path) -> int:
    write_project(folder)
    steps = execute(folder)
    print_machine()
    print(f"{len(steps['GEN'])} runs, {sum(map(len, steps.values()))} steps")
    ended = 0
    for what, count in {"reference, pairs": references, "reward, texts": rewards}.items():
        done, fewest, alone = count(steps)
        print(f"{what:<18}{done:>6} computed, {fewest:>6} the fewest, {alone:>6} where nothing is shared")
        ended |= done != fewest
    return ended


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as made:
        sys.exit(main(Path(made)))
