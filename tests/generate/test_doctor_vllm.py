"""What `cdpo doctor` says of vLLM."""

import sys
from pathlib import Path

from cdpo.commands import doctor


def test_where_there_is_none(capsys):
    assert doctor._vllm(None) == []
    assert capsys.readouterr().out.startswith("optional vLLM is absent: `backend: vllm` needs it")


def test_where_the_one_named_has_none(capsys):
    assert len(doctor._vllm(sys.executable)) == 1
    assert capsys.readouterr().out == (
        f"wrong    vLLM of {sys.executable} does not import: ModuleNotFoundError: No module named 'vllm'\n"
    )


def test_its_version(capsys, tmp_path: Path):
    """vLLM prints lines of its own before it."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Triton is installed\necho 0.32.0\n")
    python.chmod(0o755)
    assert doctor._vllm(str(python)) == []
    assert capsys.readouterr().out == f"ok       vLLM 0.32.0 ({python})\n"
