"""A wheel, installed where there is no checkout, does all that a checkout can."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's content, to be put before everything else on the path."""
    room = tmp_path_factory.mktemp("wheel")
    source = room / "source"
    source.mkdir()
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if (ROOT / name).is_file() and name.startswith(
            ("cdpo/", "pipelines/", "configs/", "viewer/", "setup", "pyproject", "README")
        ):
            place = source / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", room, source], check=True)
    (wheel,) = room.glob("cdpo-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", room / "site", wheel], check=True)
    return room / "site"


def cdpo(installed: Path, cwd: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "cdpo.cli", *words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.fault(25)
@pytest.mark.fault(26)
def test_init_and_prep_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    cdpo(installed, tmp_path, "init")
    assert (tmp_path / "configs" / "examples" / "sail.yaml").exists()
    assert "8 runs, 27 steps" in cdpo(installed, tmp_path, "prep")
    plan = json.loads(cdpo(installed, tmp_path, "plan", "configs/examples/sail.yaml", "--json"))
    assert {step["state"] for step in plan["steps"]} == {"unresolved"}


@pytest.mark.fault(25)
@pytest.mark.fault(26)
@pytest.mark.slow
def test_the_demo_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    cdpo(installed, tmp_path, "init")
    cdpo(installed, tmp_path, "prep")
    cdpo(installed, tmp_path, "execute")
    found = json.loads(cdpo(installed, tmp_path, "results", "--json"))
    versus = {group["name"]: group["versus"] for group in found["groups"] if group.get("versus")}
    assert len(versus) == 2
    for name, compared in versus.items():
        difference = compared["metrics"]["gold/mean"]
        assert difference["low"] > 0, f"{name} does not beat SFT in gold reward: {difference}"
