"""The main job on human data: hh-rlhf through SFT, RM, DPO, GEN and EVALREWARD, on a tiny model made from scratch."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import DATA, ROOT, run_cdpo

FILE = DATA / "hh_rlhf" / "harmless_base_test.jsonl.gz"


@pytest.mark.skipif(not FILE.is_file(), reason="hh-rlhf's harmless-base test file is not beside the project")
@pytest.mark.slow
def test_the_main_job_runs_on_human_data(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from hh_rlhf import write_project
    finally:
        sys.path.pop(0)
    write_project(tmp_path, FILE, sft_steps=8, steps=2, limit=8, rows=160)
    run_cdpo("prep", cwd=tmp_path)
    run_cdpo("execute", "--display", "json", cwd=tmp_path)

    manifests = {}
    for path in (tmp_path / ".cdpo" / "steps").glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifests.setdefault(manifest["pipeline"], manifest)
    assert set(manifests) == {"PREP", "SFT", "RM", "REFERENCE", "DPO", "GEN", "EVALREWARD_CHOSEN", "EVALREWARD"}
    assert sum(manifests["PREP"]["summary"]["kept"].values()) == 160
    sft = manifests["SFT"]["summary"]
    assert sft["after"]["eval"]["loss"] < sft["before"]["eval"]["loss"] - 0.5

    found = json.loads(run_cdpo("results", "--json", cwd=tmp_path).stdout)
    for run in found["runs"]:
        assert 4 < run["metrics"]["reward/mean"]["n"] <= 8
