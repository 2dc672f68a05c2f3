"""PUSH in a plan: what it reads, where it goes, and what it leaves as it is."""

import pytest
from planning import Folder, experiment, of

from cdpo.config.devices import Devices
from cdpo.engine.services.describe import own_processes
from cdpo.plan.build import plan_file

STAGES = "[SFT, DPO, GEN, EVALREWARD, PUSH]"
TASKS = "{pipeline: BASE}, {pipeline: SFT}, {pipeline: DPO, beta: 0.1}"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)


def test_each_run_is_pushed_once_under_its_name_and_nothing_else_changes(folder: Folder) -> None:
    plan = folder.plan(experiment(TASKS, pipelines=STAGES))
    pushes = {step.params["run"]: step for step in of(plan, "PUSH")}
    assert sorted(pushes) == sorted(run.name for run in plan.runs)
    base, sft, dpo = (pushes[run.name] for run in plan.runs)
    assert set(base.inputs) == {"responses", "scores"}, "the named model is not published again"
    assert set(sft.inputs) == set(dpo.inputs) == {"model", "responses", "scores"}
    (trained,) = of(plan, "DPO")
    assert dpo.inputs["model"] == {"step": trained.key}
    assert (dpo.params["hub"], dpo.params["model_repo"], dpo.params["tag"]) == (
        "local",
        plan.runs[2].name,
        plan.runs[2].tag,
    )
    without = folder.plan(experiment(TASKS, pipelines=STAGES.replace(", PUSH", "")))
    assert [run.name for run in without.runs] == [run.name for run in plan.runs]
    assert [run.recipe for run in without.runs] == [run.recipe for run in plan.runs]
    assert without.steps.keys() == {key for key, step in plan.steps.items() if step.pipeline != "PUSH"}


def test_another_hub_is_another_push(folder: Folder) -> None:
    text = experiment("{pipeline: SFT}", pipelines="[SFT, PUSH]")
    (here,) = of(folder.plan(text), "PUSH")
    folder.write("configs/services/huggingface.yaml", "{kind: huggingface, organization: lab, prefix: {models: x-}}\n")
    (there,) = of(folder.plan(text), "PUSH")
    assert here.key != there.key
    assert (there.params["hub"], there.params["owner"]) == ("huggingface", "lab")
    assert there.params["model_repo"] == f"x-{there.params['run']}"


def test_an_adapter_is_pushed_with_the_model_that_it_is_for(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: SFT, lora: true}", pipelines="[SFT, PUSH]"))
    (push,), (sft,) = of(plan, "PUSH"), of(plan, "SFT")
    assert push.inputs == {"model": sft.inputs["model"], "model_adapter": {"step": sft.key}}


def test_a_smoke_test_publishes_nothing(folder: Folder) -> None:
    folder.plan(experiment(TASKS, pipelines=STAGES))
    assert not of(plan_file(folder.tasks, folder.configs, smoke=True), "PUSH")


def test_a_push_takes_no_gpu(folder: Folder) -> None:
    plan = folder.plan(experiment("{pipeline: SFT}", pipelines="[SFT, PUSH]"))
    devices = Devices.model_validate({"pipelines": {"default": {"processes": 2}}})
    assert [own_processes(devices, step) for step in (*of(plan, "SFT"), *of(plan, "PUSH"))] == [2, 0]
