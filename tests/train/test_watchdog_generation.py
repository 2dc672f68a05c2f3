"""The watchdog of GEN: responses that are worth nothing, against those of a base model, which are what they are."""

from pathlib import Path
from typing import Any

import pytest
from endings import ALWAYS, NEVER, device, ending

from cdpo.data import playground
from cdpo.data.prepared import write_split
from cdpo.errors import StepError
from cdpo.files import read_json_lines
from cdpo.generate.useless import Tally
from cdpo.pipelines.gen import run
from cdpo.step import Step

#: the playground's chosen responses have about six tokens
ENOUGH, TOO_FEW = 12, 3


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    for split, rows in playground.make(10, 10, 60, 0).items():
        write_split(folder, split, rows)
    return folder


def gen(world: Any, prompts: Path, policy: Path, tmp_path: Path, tokens: int, **thresholds: Any) -> Step:
    """A step that answers 60 prompts, 16 at a time; its policy was trained here where it lies in `tmp_path`/steps."""
    step = world.step("GEN", {"max_new_tokens": tokens}, data=prompts, model=policy)
    step.device.micro_batch = 16
    step.device.watchdog = device(**{"responses": 20, **thresholds})["watchdog"]
    step.work = tmp_path / "work/key"
    (step.work / "out").mkdir(parents=True)
    return step


def test_empty_responses_end_the_step_early(world, prompts, tmp_path) -> None:
    policy = ending(world.base, tmp_path / "named", ALWAYS)
    step = gen(world, prompts, policy, tmp_path, ENOUGH)
    with pytest.raises(StepError, match="32 of 32 responses so far are empty: the policy ends where it should begin"):
        run(step)
    assert len(list(read_json_lines(step.checkpoints / "responses.jsonl"))) == 32


def test_endless_responses_of_a_policy_that_was_trained_end_the_step(world, prompts, tmp_path) -> None:
    policy = ending(world.base, tmp_path / "steps/SFT/made/out", NEVER)
    with pytest.raises(StepError, match=r"32 of 32 responses so far never end: max_new_tokens cuts them off"):
        run(gen(world, prompts, policy, tmp_path, ENOUGH))


def test_a_base_model_may_go_on_for_ever(world, prompts, tmp_path) -> None:
    policy = ending(world.base, tmp_path / "named", NEVER)
    assert run(gen(world, prompts, policy, tmp_path, ENOUGH))["stopped"] == 0


def test_max_new_tokens_below_what_the_data_needs_is_not_the_policys_fault(world, prompts, tmp_path) -> None:
    policy = ending(world.base, tmp_path / "steps/SFT/made/out", NEVER)
    assert run(gen(world, prompts, policy, tmp_path, TOO_FEW))["stopped"] == 0


@pytest.mark.parametrize("off", [{"endless": None}, {"responses": 61}])
def test_what_is_switched_off_is_not_looked_at(world, prompts, tmp_path, off) -> None:
    policy = ending(world.base, tmp_path / "steps/SFT/made/out", NEVER)
    assert run(gen(world, prompts, policy, tmp_path, ENOUGH, **off))["responses"] == 60


def test_without_a_watchdog_nothing_is(world, prompts, tmp_path) -> None:
    step = gen(world, prompts, ending(world.base, tmp_path / "named", ALWAYS), tmp_path, ENOUGH)
    step.device.watchdog = None
    assert run(step)["mean_response_tokens"] == 0


@pytest.mark.parametrize(
    ("empty", "cut_off", "useless"), [(50, 0, False), (51, 0, True), (0, 98, False), (0, 99, True)]
)
def test_shares_up_to_the_thresholds_pass(empty: int, cut_off: int, useless: bool) -> None:
    tally = Tally(100, empty, cut_off)
    limits = device()["watchdog"]
    if useless:
        with pytest.raises(StepError):
            tally.judge(limits, "so far", ends=True)
    else:
        assert tally.judge(limits, "so far", ends=True)
