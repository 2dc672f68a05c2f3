"""How rows are dealt out to shards, and how a plan is cut."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdpo.config.devices import read_devices
from cdpo.config.problems import ConfigError
from cdpo.plan.build import plan_file
from cdpo.plan.shards import cut
from cdpo.step import Device, Step
from tests.conftest import write_project

IDS = st.lists(st.text(), unique=True, max_size=40)


def shares(ids: list[str], count: int) -> list[list[str]]:
    found = []
    for index in range(count):
        step = Step("GEN", "", "", {}, {}, 0, Device(), Path(), shard={"of": "", "index": index, "count": count})
        found.append([ids[at] for at in step.share(ids)])
    return found


@given(ids=IDS, count=st.integers(1, 9))
def test_every_row_is_of_one_shard_and_shards_are_even(ids: list[str], count: int) -> None:
    found = shares(ids, count)
    assert sorted(each for share in found for each in share) == sorted(ids)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(ids=IDS, count=st.integers(1, 9), data=st.data())
def test_shares_follow_from_ids_alone_and_keep_the_order(ids: list[str], count: int, data: Any) -> None:
    turned = data.draw(st.permutations(ids))
    for one, other in zip(shares(ids, count), shares(turned, count), strict=True):
        assert set(one) == set(other)
        assert one == [each for each in ids if each in set(one)]


def test_an_uncut_step_has_all_rows() -> None:
    assert Step("GEN", "", "", {}, {}, 0, Device(), Path()).share(["b", "a", "c"]) == [0, 1, 2]


def test_long_and_short_rows_are_mixed() -> None:
    """Rows that stand in order of their length do not give one shard all the long ones."""
    lengths = [sum(int(each) for each in share) for share in shares([str(at) for at in range(4000)], 4)]
    assert max(lengths) < 1.1 * min(lengths)


TASKS = "tag: t\npipelines: [GEN]\nmodel: [tiny]\ndataset: [playground]\nseed: [0]\ntasks: [{pipeline: BASE}]\n"


def test_a_cut_plan_has_the_parts_before_the_step_which_keeps_its_key(tmp_path: Path) -> None:
    folder = write_project(tmp_path, TASKS)
    plan = plan_file(folder / "configs" / "tasks.yaml", folder / "configs")
    (whole,) = [step for step in plan.steps.values() if step.pipeline == "GEN"]
    made = cut(plan, lambda pipeline: 3, set(plan.steps))
    order = list(made.steps)
    parts = [step for step in made.steps.values() if step.shard]
    assert [(part.shard["of"], part.shard["index"], part.shard["count"]) for part in parts] == [
        (whole.key, index, 3) for index in range(3)
    ]
    assert len({part.key for part in parts} | {whole.key}) == 4
    assert [part.params for part in parts] == [whole.params] * 3
    assert [part.inputs for part in parts] == [whole.inputs] * 3
    joined = made.steps[whole.key]
    assert joined.shards == [part.key for part in parts]
    assert all(order.index(part.key) < order.index(whole.key) for part in parts)
    assert {*joined.parents} == {*whole.parents, *joined.shards}
    # PREP makes no rows that could be cut
    assert sum(step.pipeline == "PREP" for step in made.steps.values()) == 1
    assert cut(plan, lambda pipeline: 1, set(plan.steps)) is plan
    assert cut(plan, lambda pipeline: 3, set(plan.steps) - {whole.key}) is plan


@pytest.mark.parametrize(
    "text, said",
    [
        ("pipelines: {SFT: {shards: 2}}", "SFT cannot be cut into shards; .*GEN"),
        ("pipelines: {GEN: {shards: 0}}", "shards"),
        ("pipelines: {GEN: {shards: many}}", "shards"),
        ("engine: slurm\npipelines: {GEN: {shards: auto}}", "write a number"),
    ],
)
def test_what_devices_yaml_may_say(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_devices(file)


def test_a_default_is_for_those_that_can_be_cut(tmp_path: Path) -> None:
    file = tmp_path / "devices.yaml"
    file.write_text("pipelines: {default: {shards: 2}}")
    assert read_devices(file).of("GEN").shards == 2
