"""Losses, label noise and columns as a tasks file names them."""

import pytest
from planning import Folder, experiment, keys, of

from cdpo.config.problems import ConfigError

LOSS = "def loss(pairs, options): return -options.beta * pairs.z\n"


def test_a_loss_of_ones_own_is_an_input_hashed_by_its_file(folder: Folder) -> None:
    folder.tasks = folder.path / "tasks.yaml"
    file = folder.write("my.py", LOSS)
    text = experiment("{pipeline: DPO, beta: 0.1, loss_type: [sigmoid, './my.py:loss', ipo]}")
    plan = folder.plan(text)
    plain, own, other = of(plan, "DPO")
    assert own.params["loss_type"] == "plugin"
    assert own.inputs["loss_plugin"]["plugin"] == f"{file}:loss"
    assert [set(step.inputs) for step in (plain, other)] == [{"data", "model", "reference"}] * 2
    assert "my.py-loss" in own.name
    # its bytes and the function are the key, not its place
    folder.write("your.py", LOSS)
    assert keys(folder.plan(text.replace("./my.py", "./your.py"))) == keys(plan)
    file.write_text(LOSS.replace("-", ""))
    assert keys(plan) - keys(folder.plan(text)) == {own.key}


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("loss_type: './my.py:lost'", r"loss_type: .*my\.py has no function 'lost' \(did you mean 'loss'"),
        ("loss_type: './gone.py:loss'", r"loss_type: there is no \./gone\.py"),
        ("loss_type: plugin", r"loss_type: plugin stands for a function of yours"),
        ("loss_type: dpo_prr", r"loss_type: should be 'sigmoid'"),
        ("loss_type: rdpo", r"rdpo without label_smoothing is `sigmoid`"),
        ("loss_type: './my.py:loss', use_weighting: true", r"use_weighting is an option of TRL's losses.*plugin"),
        ("noise_type: bt_noise_flip, noise_level: 0.1", r"which nothing here reads"),
        ("weight_column: w, loss_type: sft", r"weight_column needs a loss for every row, and sft is TRL's"),
    ],
)
def test_what_is_wrong_is_said_at_its_line(folder: Folder, task: str, said: str) -> None:
    folder.write("my.py", LOSS)
    folder.tasks = folder.path / "tasks.yaml"
    with pytest.raises(ConfigError, match=said) as caught:
        folder.plan(experiment(f"{{pipeline: DPO, beta: 0.1, {task}}}"))
    assert "tasks.yaml:5" in str(caught.value)


def test_label_noise_of_sft_rm_and_dpo_is_part_of_their_keys(folder: Folder) -> None:
    task = "{pipeline: DPO, beta: 0.1%s}"
    whole = {"pipelines": "[SFT, RM, DPO, GEN, EVALREWARD]"}
    noise = "noise_type: label_switching, noise_level: 0.1"
    plain = folder.plan(experiment(task % "", **whole))
    noisy = folder.plan(experiment(task % f", {noise}", f"SFT: {{{noise}}}\nRM: {{{noise}}}\n", **whole))
    for pipeline in ("SFT", "RM", "DPO"):
        assert not keys(plain, pipeline) & keys(noisy, pipeline)
    assert keys(plain, "PREP") == keys(noisy, "PREP"), "the data stays as it is"
