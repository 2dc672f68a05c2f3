"""What all tests share: one torch thread, no network libraries that try, and the `cdpo` command as a user calls it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("CDPO_CONFIGS", None)
os.environ.pop("CDPO_STORE", None)

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"


def run_cdpo(
    *words: object, cwd: Path, check: int | None = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Call `cdpo` in `cwd` (with `env` in place of this process's environment) and expect the exit code `check` (None:
    any)."""
    command = [sys.executable, "-m", "cdpo.cli", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900, check=False, env=env)
    if check is not None and done.returncode != check:
        pytest.fail(f"cdpo {' '.join(map(str, words))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def write_project(folder: Path, tasks: str, **tables: str) -> Path:
    """A project in `folder` with this tasks.yaml; `datasets=...` and `models=...` are name tables of its own."""
    names = {"datasets": "datasets/preprocess.yaml", "models": "models/names.yaml", "devices": "devices.yaml"}
    for name, text in {"tasks": tasks, **tables}.items():
        path = folder / "configs" / names.get(name, f"{name}.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder
