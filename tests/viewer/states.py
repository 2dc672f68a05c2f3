"""Stores as users leave them, for the tests of all pages: empty, running, failed, damaged, copied from the Hub."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cdpo.store import Store
from tests.conftest import ROOT
from tests.hub.hub_server import WRITER, Hub
from tests.results.made import PROMPTS, finish, key, record
from tests.viewer.matrix import Matrix

SFT = "first/SFT_tiny_playground"
DPO = "first/DPO_tiny_playground_beta0.1_learning_rate0.0006"


def no_folder(folder: Path, playground: Path) -> Path:
    return folder / ".cdpo"


def empty_folder(folder: Path, playground: Path) -> Path:
    (folder / ".cdpo").mkdir()
    return folder / ".cdpo"


def no_step(folder: Path, playground: Path) -> Path:
    """Two runs are recorded, and nothing of them is there."""
    store = Store(folder / ".cdpo")
    record(store, "t", "SFT_tiny", "SFT", 0, {}, [key("sft")])
    record(store, "t", "DPO_tiny", "DPO", 0, {"beta": 0.1}, [key("sft"), key("dpo")])
    return store.root


def running(folder: Path, playground: Path) -> Path:
    """Its lock is held by this process for as long as the store's Matrix lives, which the function below keeps."""
    matrix = Matrix(folder)
    matrix.done("prep", "sft", "dpo0", seconds=20.0)
    LOCKS.append(matrix.runs_now("dpo1", 40, place="cpu 0"))
    return matrix.store.root


#: of running stores; until the tests end
LOCKS: list[object] = []


def failed(folder: Path, playground: Path) -> Path:
    """One run is measured, one by half, one failed, one waits for what failed."""
    matrix = Matrix(folder, 4)
    matrix.done("prep", "sft", "dpo0", "gen0", "dpo1", "gen1")
    for at, metrics in ((0, ("gold", "reward")), (1, ("gold",))):
        made = matrix.steps[f"scored{at}"]
        table = {"split": "eval", "prompt_id": PROMPTS, "sample": 0}
        columns = {f"{name}_generated": [float(at + each % 7) for each in range(len(PROMPTS))] for name in metrics}
        finish(
            matrix.store, made.pipeline, made.name, made.key, params=made.params, inputs=made.inputs,
            table=table | columns,
        )  # fmt: skip
    matrix.failed("dpo2", "CUDA out of <memory>", ["step 3", "no memory"])
    return matrix.store.root


def _copied(folder: Path, playground: Path) -> Path:
    shutil.copytree(playground / ".cdpo", folder / ".cdpo", symlinks=True)
    return folder / ".cdpo"


def damaged_ref(folder: Path, playground: Path) -> Path:
    store = _copied(folder, playground)
    min((store / "refs" / "sweep").glob("*.json")).write_text("{")
    return store


def damaged_steps(folder: Path, playground: Path) -> Path:
    """The plan, manifests and logs are cut off, or are no files of their kind."""
    store = _copied(folder, playground)
    min((store / "plans").glob("*.json")).write_text("{")
    for pipeline, name, text in (
        ("SFT", "manifest.json", "{"),
        ("DPR", "manifest.json", "[]"),
        ("GEN", "manifest.json", ""),
        ("DPO", "metrics.jsonl", '{"step": 1, "loss"\n[]\n7'),
        ("RM", "step.json", "{"),
        ("PREP", "out/report.json", "{"),
    ):
        for path in (store / "steps" / pipeline).glob(f"*/{name}"):
            path.write_text(text)
    return store


def cut_off_tables(folder: Path, playground: Path) -> Path:
    """Every table of the store ends too early, as on a disk that is full."""
    store = _copied(folder, playground)
    for path in (store / "steps").rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    return store


def garbled_tables(folder: Path, playground: Path) -> Path:
    """Every table has the length that its manifest tells, and other bytes."""
    store = _copied(folder, playground)
    for path in (store / "steps").rglob("*.parquet"):
        path.write_bytes(b"PAR1" * (path.stat().st_size // 4) + b"." * (path.stat().st_size % 4))
    return store


def lost_tables(folder: Path, playground: Path) -> Path:
    """Steps are finished, and somebody has deleted their tables."""
    store = _copied(folder, playground)
    for path in (store / "steps").rglob("*.parquet"):
        path.unlink()
    return store


def mirrored(folder: Path, playground: Path) -> Path:
    """What a copy of the Hub holds of two runs that were published: no plan, no weights."""

    def call(*words: object) -> str:
        environment = hub.environment(folder / "cache", WRITER) | {"XDG_CACHE_HOME": str(folder / "cache")}
        command = [sys.executable, "-m", "tests.hub.showing", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    with Hub(folder / "hub") as hub:
        call("publish", playground / ".cdpo", folder / "locks", f"{SFT}_s0", f"{DPO}_s0")
        call("mirror", "ada")
    return next(iter((folder / "cache" / "cdpo").rglob("refs"))).parent


def finished(folder: Path, playground: Path) -> Path:
    return playground / ".cdpo"


MADE: dict[str, Callable[[Path, Path], Path]] = {
    each.__name__: each
    for each in (
        finished,
        no_folder,
        empty_folder,
        no_step,
        running,
        failed,
        damaged_ref,
        damaged_steps,
        cut_off_tables,
        garbled_tables,
        lost_tables,
        mirrored,
    )
}
