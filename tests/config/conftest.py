"""A tasks file in a folder of its own, planned with the tables that cdpo ships."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cdpo.config.problems import ConfigError, Problem, show_path
from cdpo.plan.build import plan_file


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """A configs folder without tables: those that cdpo ships are read in their place."""
    (tmp_path / "configs").mkdir()
    return tmp_path / "configs"


@pytest.fixture
def problems(tmp_path: Path, configs: Path) -> Callable[[str | bytes], list[Problem]]:
    """The problems of a tasks file that is wrong."""

    def found(text: str | bytes) -> list[Problem]:
        file = tmp_path / "tasks.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigError) as caught:
            plan_file(file, configs)
        for problem in caught.value.problems:
            start = f"{file}:{problem.line}:{problem.col}: {show_path(problem.path)}: "
            assert problem.file == str(file)
            assert str(problem).startswith(start)
            assert str(problem) in str(caught.value)
        return caught.value.problems

    return found
