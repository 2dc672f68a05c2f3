"""The benchmark of shared passes: what twelve runs send through their models is the fewest that would do."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_twelve_runs_compute_no_reference_and_score_no_chosen_response_twice(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/sharing.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 runs, 43 steps" in done.stdout
    found = [[int(word) for word in line.split() if word.isdigit()] for line in done.stdout.splitlines()[-2:]]
    for computed, fewest, alone in found:
        assert computed == fewest < alone
