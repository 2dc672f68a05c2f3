"""`cdpo plan` tells the memory that was measured, and `execute` refuses what is known not to fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdpo.commands.matrix import refuse_unfit
from cdpo.errors import UsageError
from cdpo.files import read_json
from cdpo.measured import Measurement, look_up, remember, setup_of
from cdpo.pipeline import pipelines
from cdpo.plan.graph import Plan
from cdpo.project import Project
from cdpo.store import Store
from tests.conftest import run_cdpo, write_project

GB = 10**9
A100 = Measurement("NVIDIA A100", 85 * GB, "setup", length=1000, micro_batch=8, most=32, peak=70 * GB)
DATASETS = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
TASKS = """\
tag: first
pipelines: [SFT, DPO]
model: [tiny]
dataset: [small]
tasks:
  - {pipeline: DPO, beta: [0.1], learning_rate: 1e-3, max_steps: 2, batch_size: 8}
SFT: {learning_rate: 2e-3, max_steps: 2, batch_size: 8}
"""


def like(**changed: Any) -> Measurement:
    return Measurement(**{**vars(A100), **changed})


@pytest.mark.parametrize(
    ("memory", "most", "rows"),
    [
        (85, 32, 8),
        (85, 4, 4),
        (82, 32, 8),
        (60, 32, None),  # what was measured does not fit there
        (141, 32, None),  # there more may fit
        (141, 8, 8),
        (85, 64, 8),
    ],
)
def test_what_a_measurement_tells_of_other_memory(memory: int, most: int, rows: int | None) -> None:
    assert A100.rows(memory * GB, most) == rows


def test_what_was_never_tried_is_not_told() -> None:
    everything = like(micro_batch=32, peak=50 * GB)
    assert everything.rows(85 * GB, 32) == 32
    assert everything.rows(85 * GB, 64) is None
    nothing = like(micro_batch=0, peak=None)
    assert (nothing.rows(85 * GB, 1), nothing.rows(86 * GB, 64), nothing.rows(141 * GB, 1)) == (0, 0, None)


@pytest.mark.parametrize(("length", "found"), [(1000, 1000), (900, 1000), (800, 1000), (700, None), (1001, None)])
def test_a_measurement_holds_for_rows_that_are_a_little_shorter(tmp_path: Path, length: int, found: int | None) -> None:
    store = Store(tmp_path)
    remember(store, A100)
    told = look_up(store, "NVIDIA A100", 85 * GB, "setup", length, 32)
    assert (told.length if told else None) == found
    for card, setup in (("NVIDIA T4", "setup"), ("NVIDIA A100", "another")):
        assert look_up(store, card, 85 * GB, setup, 1000, 32) is None


def test_the_nearest_length_tells_and_what_does_not_fit_is_no_better_when_longer(tmp_path: Path) -> None:
    store = Store(tmp_path)
    remember(store, A100)
    remember(store, like(length=950, micro_batch=9))
    told = look_up(store, "NVIDIA A100", 85 * GB, "setup", 940, 32)
    assert told is not None
    assert told.micro_batch == 9
    remember(store, like(length=2000, micro_batch=0, peak=None))
    told = look_up(store, "NVIDIA A100", 85 * GB, "setup", 9000, 32)
    assert told is not None
    assert told.micro_batch == 0


def test_a_damaged_measurement_is_measured_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    remember(store, A100)
    (path,) = (tmp_path / "measured").iterdir()
    path.write_text('{"card": "NVIDIA A100"}')
    assert look_up(store, "NVIDIA A100", 85 * GB, "setup", 1000, 32) is None
    path.write_text("{")
    assert look_up(store, "NVIDIA A100", 85 * GB, "setup", 1000, 32) is None


def test_a_setup_is_what_decides_the_memory_of_a_row() -> None:
    """The model at the bottom, whoever trained it and how; and the parameters that matter, but no learning rate."""
    params = {"beta": 0.1, "learning_rate": 1e-5}
    tiny, other = {"built": {"kind": "tiny"}}, {"folder": "/m", "sha256": "1"}
    parents = {"sft": {"model": {"step": "sft before"}}, "sft before": {"model": tiny}}.__getitem__
    trained = setup("DPO", params, {"model": {"step": "sft"}}, parents)
    assert trained == setup("DPO", {**params, "learning_rate": 1e-3, "beta": 0.5}, {"model": tiny}, parents)
    differing = [
        setup("DPO", params, {"model": other}, parents),
        setup("DPO", {**params, "lora": {"r": 4}}, {"model": tiny}, parents),
        setup("DPO", {**params, "dtype": "bf16"}, {"model": tiny}, parents),
        setup("DPO", {**params, "attn_implementation": "eager"}, {"model": tiny}, parents),
        setup("SFT", {"learning_rate": 1e-5}, {"model": tiny}, parents),
        setup_of("DPO", pipelines()["DPO"].params.model_validate(params), {"model": tiny}, parents, 2),
    ]
    assert len({trained, *differing}) == 1 + len(differing)


# -- a plan ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SFT and DPO step of the tiny model."""
    folder = write_project(tmp_path_factory.mktemp("fit"), TASKS, datasets=DATASETS)
    run_cdpo("prep", cwd=folder)
    run_cdpo("execute", "--display", "plain", cwd=folder)
    return folder


def of(folder: Path) -> tuple[Project, Plan]:
    project = Project(folder / "configs", Store(folder / ".cdpo"), folder / "configs" / "tasks.yaml")
    return project, project.plan()


def setup(pipeline: str, params: dict[str, Any], inputs: Any, parents: Callable[[str], Any]) -> str:
    return setup_of(pipeline, pipelines()[pipeline].params.model_validate(params), inputs, parents, 1)


@pytest.mark.slow
def test_a_step_and_its_plan_speak_of_the_same_setup(made: Path) -> None:
    project, plan = of(made)
    store = project.store
    for step in plan.steps.values():
        folder = store.find(step.key)
        assert folder is not None
        if step.pipeline == "PREP":
            continue
        described = read_json(folder / "step.json")
        there = setup(
            step.pipeline,
            described["params"],
            described["planned"],
            lambda key: store.manifest(store.find(key) or Path())["inputs"],
        )
        assert there == setup(step.pipeline, step.params, step.inputs, lambda key: plan.steps[key].inputs)


@pytest.mark.slow
def test_plan_tells_and_execute_refuses(made: Path) -> None:
    project, plan = of(made)
    (made / "configs/devices.yaml").write_text("gpus: []\ncpu_workers: 1\n")
    (made / "configs/tasks.yaml").write_text(TASKS.replace("0.1", "0.2"))
    dpo = next(step for step in plan.steps.values() if step.pipeline == "DPO")
    memory = project.devices().device("DPO", None).memory
    assert memory is not None
    named = setup("DPO", dpo.params, dpo.inputs, lambda key: plan.steps[key].inputs)
    fits = Measurement("cpu", memory, named, length=25, micro_batch=8, most=8, peak=GB)

    remember(project.store, fits)
    run_cdpo("prep", cwd=made)
    told = run_cdpo("plan", cwd=made).stdout
    assert f"DPO: 1.0 GB of {memory / GB:.1f} GB of memory (cpu), 8 rows at once, as measured here" in told

    told = json.loads(run_cdpo("plan", "--json", cwd=made).stdout)["memory"]
    assert told == {"DPO": {"card": "cpu", "memory": memory, "peak": GB, "micro_batch": 8, "length": 25}}

    remember(project.store, Measurement(**{**vars(fits), "micro_batch": 0, "peak": None}))
    refused = run_cdpo("plan", cwd=made, check=2)
    assert refused.stdout.startswith("stage")
    assert "DPO/tiny_small_beta0.2" in refused.stderr
    with pytest.raises(UsageError, match="does not fit"):
        refuse_unfit(*of(made), None)
    before = sorted(path.name for path in (made / ".cdpo/work").glob("*"))
    refused = run_cdpo("execute", "--display", "json", cwd=made, check=2)
    assert "this plan does not fit into memory:" in refused.stderr
    assert "DPO/tiny_small_beta0.2" in refused.stderr
    assert "not even one row of" in refused.stderr
    assert "What helps: fewer tokens" in refused.stderr
    assert sorted(path.name for path in (made / ".cdpo/work").glob("*")) == before
    assert all(json.loads(line)["event"] != "step_started" for line in refused.stdout.splitlines())

    # a step that is finished needs no memory, and one whose micro-batch is named is tried
    assert run_cdpo("execute", "--only", "SFT", "--display", "plain", cwd=made).returncode == 0
    (made / "configs/devices.yaml").write_text("gpus: []\ncpu_workers: 1\npipelines: {DPO: {micro_batch: 1}}\n")
    refuse_unfit(*of(made), None)
