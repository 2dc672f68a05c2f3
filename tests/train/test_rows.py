"""What goes from a prepared dataset into the rows of training: numbers for the loss, label noise, room for sampling."""

import pytest

from cdpo.data.prepared import SPLITS, read_split, write_split
from cdpo.errors import StepError
from cdpo.models import load_tokenizer
from cdpo.pipelines.dpo import DPOParams
from cdpo.pipelines.rm import RMParams
from cdpo.pipelines.sft import SFTParams
from cdpo.train.rows import read_splits

RATE = {"learning_rate": 1e-3}
SWITCH = {"noise_type": "label_switching", "noise_level": 0.4}


@pytest.fixture(scope="module")
def labelled(world, tmp_path_factory):
    """The world's data with numbers, and a text column that is called `margin` and is none."""
    folder = tmp_path_factory.mktemp("labelled")
    for split in SPLITS:
        rows = [
            {**row, "bt_prob": (at % 10) / 10, "w": at, "m": -0.5 * at, "margin": "no number"}
            for at, row in enumerate(read_split(world.data, split))
        ]
        write_split(folder, split, rows)
    return folder


@pytest.fixture
def read(world, labelled):
    tokenizer = load_tokenizer(world.base)

    def splits(schema, data=labelled, seed=0, room=None, **params):
        if schema is DPOParams:
            params = {"beta": 0.1, **params}
        step = world.step("DPO", {}, seed=seed, data=data)
        return read_splits(step, schema.model_validate({**RATE, **params}), tokenizer, room=room)

    return splits


@pytest.fixture
def changed(labelled, tmp_path):
    """The labelled data, with a value of one row of a split changed."""

    def change(split: str, column: str, value, at: int = 3):
        for name in SPLITS:
            rows = read_split(labelled, name)
            if name == split:
                rows = [
                    {**row, column: value if at in (place, "all") else row[column]} for place, row in enumerate(rows)
                ]
            write_split(tmp_path / "changed", name, rows)
        return tmp_path / "changed"

    return change


def test_probability_weight_and_margin_go_with_their_rows(read, labelled) -> None:
    splits = read(DPOParams, weight_column="w", margin_column="m")
    for split in SPLITS:
        at = {row["prompt_id"]: place for place, row in enumerate(read_split(labelled, split))}
        for row in getattr(splits, split):
            place = at[row["prompt_id"]]
            assert (row["bt_prob"], row["weight"], row["margin"]) == ((place % 10) / 10, place, -0.5 * place)
            assert {type(row[name]) for name in ("bt_prob", "weight", "margin")} == {float}
    assert splits.report["train"].keys() == {"rows", "dropped", "longest"}


def test_nothing_goes_that_nobody_asked_for(read, world) -> None:
    assert read(DPOParams).train[0].keys() == {"prompt_id", "prompt_ids", "chosen_ids", "rejected_ids", "bt_prob"}
    plain = {"prompt_id", "prompt_ids", "chosen_ids", "rejected_ids"}
    assert read(SFTParams).train[0].keys() == read(DPOParams, data=world.data).train[0].keys() == plain
    assert read(RMParams, redraw_labels=True).train[0].keys() == plain


@pytest.mark.parametrize(
    ("split", "column", "value", "said"),
    [
        ("train", "bt_prob", 1.5, r"bt_prob of row \w+ of 'train' is 1.5, and not in \[0, 1\]"),
        ("eval", "bt_prob", -0.1, r"bt_prob of row \w+ of 'eval' is -0.1"),
        ("tune", "bt_prob", None, r"bt_prob of row \w+ of 'tune' is missing"),
        ("train", "bt_prob", float("nan"), "is nan, and not a finite number"),
        ("train", "w", -1, r"w of row \w+ of 'train' is -1.*, and not 0 or above"),
        ("train", "m", float("inf"), r"m of row \w+ of 'train' is inf"),
        ("tune", "m", "high", r"m of row \w+ of 'tune' is "),
    ],
)
def test_numbers_that_make_no_sense_are_named(read, changed, split, column, value, said) -> None:
    data = changed(split, column, value)
    with pytest.raises(StepError, match=said):
        read(DPOParams, data=data, weight_column="w", margin_column="m")


def test_columns_that_are_not_there(read, changed, world) -> None:
    with pytest.raises(StepError, match=r"'train' has no column 'v'; it has .*bt_prob, chosen"):
        read(DPOParams, weight_column="v")
    for asked in ({"loss_type": "dpo_pr"}, {"redraw_labels": True}):
        with pytest.raises(StepError, match=r"'train' has no column 'bt_prob'.*cdpo label-bt"):
            read(DPOParams, data=world.data, **asked)
    # noise comes over train alone, so it needs probabilities there alone; a loss needs them everywhere
    data = changed("eval", "bt_prob", None, at="all")
    assert read(DPOParams, data=data, redraw_labels=True)
    with pytest.raises(StepError, match="'eval' has no column 'bt_prob'"):
        read(DPOParams, data=data, loss_type="dpo_pro")


def turned(splits, plain, split: str) -> dict[str, bool]:
    """Which rows have their two responses exchanged."""
    before = {row["prompt_id"]: row for row in getattr(plain, split)}
    kept = [row["prompt_id"] for row in getattr(splits, split)]
    assert kept == [name for name in before if name in set(kept)], "noise leaves the order"
    found = {}
    for row in getattr(splits, split):
        was = before[row["prompt_id"]]
        found[row["prompt_id"]] = row["chosen_ids"] == was["rejected_ids"] != was["chosen_ids"]
        sides = ("rejected_ids", "chosen_ids") if found[row["prompt_id"]] else ("chosen_ids", "rejected_ids")
        assert (row["chosen_ids"], row["rejected_ids"]) == tuple(was[side] for side in sides)
    return found


@pytest.mark.fault(13)
def test_noise_is_on_train_alone_and_the_same_for_all_methods(read) -> None:
    plain = read(DPOParams)
    made = {schema: read(schema, **SWITCH) for schema in (SFTParams, RMParams, DPOParams)}
    flips = [turned(splits, plain, "train") for splits in made.values()]
    assert flips[0] == flips[1] == flips[2]
    assert 0 < sum(flips[0].values()) < len(flips[0])
    for splits in made.values():
        assert splits.report["train"]["noise"]["switched"] == sum(flips[0].values())
        for split in ("tune", "eval"):
            assert not any(turned(splits, plain, split).values())
            assert "noise" not in splits.report[split]
    limited = turned(read(DPOParams, limit=20, **SWITCH), plain, "train")
    assert len(limited) == 20
    assert all(flips[0][name] == was for name, was in limited.items())
    assert turned(read(DPOParams, seed=1, **SWITCH), plain, "train") != flips[0]


@pytest.mark.fault(14)
def test_redrawn_labels_turn_their_probability_and_switched_ones_do_not(read) -> None:
    plain = read(DPOParams)
    before = {row["prompt_id"]: row["bt_prob"] for row in plain.train}
    for params, turns in (({"redraw_labels": True}, True), (SWITCH, False)):
        made = read(DPOParams, **params)
        flips = turned(made, plain, "train")
        for row in made.train:
            was = before[row["prompt_id"]]
            assert row["bt_prob"] == (1 - was if turns and flips[row["prompt_id"]] else was)
        report = made.report["train"]["noise"]
        assert report["bt_prob_before"] == pytest.approx(sum(before.values()) / len(before), abs=1e-6)
        assert (report["bt_prob_after"] == report["bt_prob_before"]) is not turns


def test_noise_of_probabilities_reaches_the_rows(read) -> None:
    params = {"loss_type": "dpo_pr", "noise_type": "bt_noise_flip", "noise_level": 1.0}
    before, after = (
        {row["prompt_id"]: row["bt_prob"] for row in read(DPOParams, **each).train} for each in ({}, params)
    )
    assert after == {name: 1 - was for name, was in before.items()}


def test_a_prompt_without_room_is_left_out_of_train_alone(read, labelled, tmp_path) -> None:
    for split in SPLITS:
        rows = read_split(labelled, split)
        for row in rows[::5]:
            row["prompt"] = [{**row["prompt"][0], "content": " ".join([row["prompt"][0]["content"]] * 3)}]
        write_split(tmp_path, split, rows)
    splits = read(DPOParams, data=tmp_path)
    longest = max(report["longest"] for report in splits.report.values())
    room = longest - min(len(row["prompt_ids"]) for row in splits.train)
    made = read(DPOParams, data=tmp_path, room=room, max_length=longest, max_dropped=0.9)
    assert made.report["train"]["dropped"] == {"no room for max_new_tokens": len(splits.train[::5])}
    assert made.train == [row for row in splits.train if len(row["prompt_ids"]) + room <= longest]
    assert (made.tune, made.eval) == (splits.tune, splits.eval)
    with pytest.raises(StepError, match="lower max_new_tokens, or raise max_dropped"):
        read(DPOParams, data=tmp_path, room=room, max_length=longest)
