"""Finds the `run` of a step's pipeline: one of cdpo's own, or a user's file."""

import importlib
import importlib.util
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from cdpo.errors import StepError
from cdpo.step import Step

Run = Callable[[Step], Mapping[str, Any] | None]


def modules_for(todo: Collection[str]) -> Mapping[str, str]:
    """The modules of cdpo's own pipelines, by pipeline; none where nothing is to be done."""
    if not todo:
        return {}
    from cdpo.pipeline import pipelines

    return {name: pipeline.module for name, pipeline in pipelines().items()}


def load_run(described: Mapping[str, Any]) -> Run:
    """The function that makes the step of a step.json: `run` of its "module", which is `PATH.py` or `package.module`.

    Without "module" the pipeline is looked up by name, which reads every pipeline's file.
    """
    named = described.get("module")
    if named is None:
        from cdpo.pipeline import pipelines

        named = pipelines()[described["pipeline"]].module
    if named.endswith(".py"):
        path = Path(named)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.exists():
            raise StepError(f"{path}: no such file, and pipeline {described['pipeline']} is to be read from it")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(named)
    if not hasattr(module, "run"):
        raise StepError(f"{named}: no `run(step)` in it, and pipeline {described['pipeline']} is to be read from it")
    run: Run = module.run
    return run
