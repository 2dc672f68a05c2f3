"""Looking is cheap: no torch, no pandas, no connection."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from planning import experiment

WATCH = """\
import atexit, json, os, socket, sys

def refuse(*_, **__):
    raise AssertionError("a connection")

socket.socket.__init__ = refuse
socket.getaddrinfo = refuse
atexit.register(lambda: open(os.environ["CDPO_TEST_MODULES"], "w").write(json.dumps(sorted(sys.modules))))
"""
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "pandas",
    "pyarrow",
    "huggingface_hub",
    "scipy",
    "wandb",
    "trackio",
    "tensorboard",
}


@pytest.fixture
def modules(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Run `cdpo WORDS` in a project; the modules that it imported."""
    (tmp_path / "configs").mkdir()
    text = experiment("{pipeline: DPO, beta: 0.1}", pipelines="[SFT, RM, DPO, GEN, EVALREWARD]")
    (tmp_path / "configs/tasks.yaml").write_text(text)
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH)

    def run(*words: str, code: int = 0) -> set[str]:
        listed = tmp_path / "modules.json"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "watch"), "CDPO_TEST_MODULES": str(listed)}
        done = subprocess.run(
            [sys.executable, "-m", "cdpo.cli", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        return set(json.loads(listed.read_text()))

    return run


def test_help_imports_nothing_that_it_does_not_show(modules) -> None:  # type: ignore[no-untyped-def]
    found = modules("--help")
    assert not found & {*HEAVY, "numpy", "pydantic", "yaml", "rich"}
    assert not {name for name in found if name.startswith(("cdpo.plan", "cdpo.config", "cdpo.store", "cdpo.pipelines"))}


def test_plan_and_status_import_no_library_of_the_workers(modules) -> None:  # type: ignore[no-untyped-def]
    for words in (["plan"], ["plan", "--json"]):
        assert not modules(*words) & HEAVY, words
    assert not modules("status", code=2) & HEAVY
    assert not modules("schema") & HEAVY


def test_status_of_a_frozen_plan(modules, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from cdpo.project import Project

    project = Project.at(str(tmp_path / "configs"), str(tmp_path / ".cdpo"), None)
    project.freeze(project.plan(), {"lengths": {}})
    for words in (["status"], ["status", "--json"]):
        assert not modules(*words) & HEAVY, words
