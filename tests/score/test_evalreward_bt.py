"""EVALREWARD_BT: what it adds and keeps, its temperature, ties, cost models, resumption, and what it refuses.

Numbers of faults are those of the released package that must not come back.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import kill_after
from scipy.optimize import minimize_scalar
from test_score_reward import policy_folder, reward_folder, write_reward_model  # noqa: F401 (fixtures)

from cdpo.data.messages import assistant, user
from cdpo.data.playground import make
from cdpo.data.prepared import read_split, write_split
from cdpo.data.tiny import build_tiny_for_text
from cdpo.errors import StepError
from cdpo.files import read_json
from cdpo.pipelines.evalreward_bt import run
from cdpo.score.bradley_terry import fit_temperature, probabilities, share_saturated
from cdpo.step import Device, Step

TRAIN, TUNE, EVAL = 24, 4, 8
PLUGINS = """
from cdpo.data.playground import gold
def noisy(prompts, responses):
    return [5 * gold(*pair) + len(pair[1]) % 7 for pair in zip(prompts, responses)]
def far(prompts, responses):
    return [1000 * score for score in noisy(prompts, responses)]
def same(prompts, responses):
    return [1.5] * len(responses)
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared playground with columns of its own."""
    folder = tmp_path_factory.mktemp("prepared")
    for split, rows in make(TRAIN, TUNE, EVAL, 0).items():
        write_split(folder, split, [{**row, "w": at / 7, "note": f"n{at}"} for at, row in enumerate(rows)])
    return folder


@pytest.fixture
def label(tmp_path: Path, data: Path, reward_folder: Path) -> Callable[..., Step]:  # noqa: F811
    """Runs the step, and returns it; `plugin` names one of PLUGINS in place of the reward model.

    With `begun` an attempt before was killed after so many scores, and left `torn` behind them.
    """
    (tmp_path / "my.py").write_text(PLUGINS)

    def make_step(
        name: str,
        source: Path = data,
        reward: Path = reward_folder,
        plugin: str | None = None,
        micro_batch: int | None = None,
        begun: int = 0,
        torn: bytes = b"",
        **params: Any,
    ) -> Step:
        inputs = {"data": str(source)}
        inputs |= {"reward_plugin": f"{tmp_path / 'my.py'}:{plugin}"} if plugin else {"reward": str(reward)}
        device = Device(micro_batch=micro_batch)
        step = Step("EVALREWARD_BT", "0" * 64, name, params, inputs, None, device, tmp_path / name)
        step.out.mkdir(parents=True)
        if begun:
            kill_after(begun, run, step)
            with open(step.checkpoints / "scores.jsonl", "ab") as stream:
                stream.write(torn)
        run(step)
        return step

    return make_step


def rows(step: Step, split: str = "train") -> list[dict[str, Any]]:
    return read_split(step.out, split)


def column(step: Step, name: str, split: str = "train") -> np.ndarray:
    return np.array([row[name] for row in rows(step, split)])


def notes(step: Step) -> str:
    events = [json.loads(line) for line in (step.work / "events.jsonl").read_text().splitlines()]
    return "\n".join(event["text"] for event in events if event["event"] == "note")


def changed(data: Path, folder: Path, **columns: Callable[[int, dict[str, Any]], Any]) -> Path:
    """A copy of the data with columns of the training split made anew."""
    for split in ("train", "tune", "eval"):
        found = read_split(data, split)
        if split == "train":
            found = [
                {**row, **{name: make_value(at, row) for name, make_value in columns.items()}}
                for at, row in enumerate(found)
            ]
        write_split(folder, split, found)
    return folder


def test_rows_keep_all_and_gain_the_models_own_scores(label, data, reward_folder):  # noqa: F811
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    step = label("plain", bt_temperature=40.0)
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    for split, count in {"train": TRAIN, "tune": TUNE, "eval": EVAL}.items():
        before, after = read_split(data, split), rows(step, split)
        assert len(after) == count
        added = ("chosen_score", "rejected_score", "bt_prob")
        assert [{name: value for name, value in row.items() if name not in added} for row in after] == before
        for row in after[:4]:
            scores = []
            for name in ("chosen", "rejected"):
                text = tokenizer.apply_chat_template([*row["prompt"], *row[name]], tokenize=False)
                with torch.no_grad():
                    scores.append(
                        model(tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids).logits.item()
                    )
            assert [row["chosen_score"], row["rejected_score"]] == pytest.approx(scores, abs=1e-5)
            expected = 1 / (1 + np.exp(-(scores[0] - scores[1]) / 40))
            assert row["bt_prob"] == pytest.approx(expected, abs=1e-6)
    assert np.ptp(column(step, "bt_prob")) > 0.01, "a test that tells rows apart"


def test_the_report_says_what_the_columns_say(label):
    step = label("report", bt_temperature=3.0)
    report = read_json(step.out / "report.json")
    p = column(step, "bt_prob")
    assert report["bt_temperature"] == 3.0
    assert report["dropped"] == 0
    assert report["rows"] == TRAIN + TUNE + EVAL
    train = report["splits"]["train"]
    assert (train["rows"], train["accuracy"]) == (TRAIN, pytest.approx((p > 0.5).mean() + 0.5 * (p == 0.5).mean()))
    assert train["log_loss"] == pytest.approx(-np.log(p).mean())


def test_a_fitted_temperature_is_the_minimiser_of_the_log_loss_on_train(label):
    step = label("fit", plugin="noisy", bt_temperature="fit")
    report = read_json(step.out / "report.json")
    d = column(step, "chosen_score") - column(step, "rejected_score")
    assert (d > 0).any()
    assert (d < 0).any()
    assert (column(step, "chosen_score", "eval") != column(step, "rejected_score", "eval")).any()
    found = minimize_scalar(
        lambda log: np.logaddexp(0, -d / np.exp(log)).mean(), bounds=(-8, 12), method="bounded", options={"xatol": 1e-9}
    )
    assert report["bt_temperature"] == pytest.approx(np.exp(found.x), rel=1e-4)
    assert column(step, "bt_prob") == pytest.approx(1 / (1 + np.exp(-d / np.exp(found.x))), abs=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_fit_scales_with_the_scores(scale: float) -> None:
    d = np.random.default_rng(0).normal(0.5, 1.0, 200)
    found = minimize_scalar(lambda s: np.logaddexp(0, -s * d).mean(), bounds=(1e-6, 50), method="bounded")
    assert fit_temperature(d * scale) == pytest.approx(scale / found.x, rel=1e-4)


def test_labels_that_no_temperature_fits_are_refused() -> None:
    with pytest.raises(StepError, match="cost model"):
        fit_temperature([-1.0, -2.0, 0.5])
    with pytest.raises(StepError, match="cost model"):
        fit_temperature([0.0, 0.0])
    with pytest.raises(StepError, match="give bt_temperature as a number"):
        fit_temperature([1.0, 2.0, 0.0])


@pytest.mark.fault(10)
def test_fault_10_saturated_probabilities_are_told(label):
    far = label("far", plugin="far")
    share = read_json(far.out / "report.json")["saturated"]
    assert share > 0.5
    assert share == pytest.approx(
        np.mean([min(p, 1 - p) < 1e-3 for split in ("train", "tune", "eval") for p in column(far, "bt_prob", split)])
    )
    assert f"{share:.0%} of the probabilities are within 0.001 of 0 or 1" in notes(far)
    assert "bt_temperature: fit" in notes(far)
    warm = label("warm", plugin="far", bt_temperature=2000.0)
    assert "within 0.001" not in notes(warm)
    assert share_saturated(probabilities([6.9, 6.91, -6.9, -6.91], 1.0)) == 0.5


@pytest.mark.fault(21)
def test_a_tie_is_one_half(label, data, tmp_path):
    step = label("same", plugin="same")
    assert (column(step, "bt_prob") == 0.5).all()
    assert read_json(step.out / "report.json")["accuracy"] == 0.5
    twins = changed(data, tmp_path / "twins", rejected=lambda at, row: row["chosen"] if at % 2 else row["rejected"])
    p = column(label("twins_", source=twins, micro_batch=3), "bt_prob")
    assert (p[1::2] == 0.5).all(), "the same text ties with itself, whatever batches rounded it to"
    assert (p[::2] != 0.5).any()


@pytest.mark.fault(10)
def test_fault_10_a_cost_model_is_reversed_everywhere(label):
    reward, cost = label("reward"), label("cost", reverse=True)
    for split in ("train", "tune", "eval"):
        for name in ("chosen_score", "rejected_score"):
            assert (column(cost, name, split) == -column(reward, name, split)).all()
        assert column(cost, "bt_prob", split) == pytest.approx(1 - column(reward, "bt_prob", split), abs=1e-12)
    words, fewer = label("noisy", plugin="noisy"), label("fewer", plugin="noisy", reverse=True)
    assert (column(fewer, "chosen_score") == -column(words, "chosen_score")).all()


@pytest.mark.fault(7)
def test_fault_7_a_row_without_a_score_gets_no_probability(label, data, tmp_path):
    """The released package gave it 0, which trains on the flipped preference."""
    long = changed(
        data, tmp_path / "long", rejected=lambda at, row: [assistant("two " * 600)] if at == 3 else row["rejected"]
    )
    step = label("long_", source=long)
    gone = read_split(long, "train")[3]["prompt_id"]
    assert [row["prompt_id"] for row in rows(step)] == [
        row["prompt_id"] for row in read_split(long, "train") if row["prompt_id"] != gone
    ]
    assert ((column(step, "bt_prob") > 0) & (column(step, "bt_prob") < 1)).all()
    assert read_json(step.out / "report.json")["dropped"] == 1
    assert "1 of 36 rows: their chosen or rejected responses are longer than the reward model's context" in notes(step)
    with pytest.raises(StepError, match=r"1 of 36 .*max_dropped allows 1%"):
        label("strict", source=long, max_dropped=0.01)


@pytest.mark.parametrize("micro_batch", [1, 5, 64])
def test_the_batch_size_changes_nothing(label, micro_batch):
    usual, other = label("usual"), label("other", micro_batch=micro_batch)
    for name in ("chosen_score", "rejected_score", "bt_prob"):
        assert column(other, name) == pytest.approx(column(usual, name), abs=1e-5)


@pytest.mark.fault(7)
def test_fault_7_the_labels_of_a_row_depend_on_no_other_row(label, data, tmp_path):
    """A row whose pair is replaced has the probability of the new pair; all others have their own."""
    before = label("before")
    new = changed(data, tmp_path / "new", chosen=lambda at, row: [assistant("two birds")] if at == 5 else row["chosen"])
    after = label("after", source=new)
    others = np.arange(TRAIN) != 5
    for name in ("chosen_score", "rejected_score", "bt_prob"):
        assert column(after, name)[others] == pytest.approx(column(before, name)[others], abs=1e-5)
    assert abs(column(after, "chosen_score")[5] - column(before, "chosen_score")[5]) > 1e-3
    assert column(after, "rejected_score")[5] == pytest.approx(column(before, "rejected_score")[5], abs=1e-5)
    assert abs(column(after, "bt_prob")[5] - column(before, "bt_prob")[5]) > 1e-5


def test_a_step_goes_on_where_it_was_killed(label):
    """A real process, and a last line that its writer did not finish."""
    whole = label("whole", micro_batch=4)
    lines = (whole.checkpoints / "scores.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * (TRAIN + TUNE + EVAL)
    step = label("rest", micro_batch=4, begun=21, torn=lines[21][:9])
    assert "going on after 21 of 72 scores" in notes(step)
    for split in ("train", "tune", "eval"):
        assert (step.out / f"{split}.parquet").read_bytes() == (whole.out / f"{split}.parquet").read_bytes()


def test_some_rows_of_one_split(label, data):
    whole, some = label("whole"), label("some", split="eval", limit=3)
    assert sorted(path.name for path in some.out.iterdir()) == ["eval.parquet", "report.json"]
    full = {row["prompt_id"]: row for row in rows(whole, "eval")}
    assert len(rows(some, "eval")) == 3
    for row in rows(some, "eval"):
        assert row["bt_prob"] == pytest.approx(full[row["prompt_id"]]["bt_prob"], abs=1e-6)
    with pytest.raises(ValueError, match="fitted on train, and split is eval"):
        label("fit", split="eval", bt_temperature="fit")


def test_columns_of_that_name_are_replaced_and_said_so(label, data, tmp_path):
    old = changed(data, tmp_path / "old", bt_prob=lambda at, row: 0.125)
    step = label("new", source=old)
    assert not (column(step, "bt_prob") == 0.125).any()
    assert "the data's own bt_prob are replaced" in notes(step)


def test_what_does_not_fit_together_is_told(label, policy_folder, reward_folder, tmp_path, data):  # noqa: F811
    import shutil

    with pytest.raises(StepError, match="policy is not a reward model"):
        label("policy_", reward=policy_folder)
    labels = write_reward_model(policy_folder, tmp_path / "labels", labels=2)
    with pytest.raises(StepError, match="labels gives 2 labels; a reward model has one"):
        label("two", reward=labels)
    bare = tmp_path / "bare"
    shutil.copytree(reward_folder, bare)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(StepError, match=r"bare has no chat template; choose one of cdpo's: `template: plain`"):
        label("template", reward=bare)
    build_tiny_for_text(["list two birds"] * 5, tmp_path / "bpe", vocab_size=400)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tmp_path / "bpe" / name, bare / name)
    with pytest.raises(StepError, match=r"bare knows \d+ tokens, and its tokenizer gives the token id \d+"):
        label("vocabulary", reward=bare)
    strange = tmp_path / "strange"
    for split in ("train", "tune", "eval"):
        found = read_split(data, split)
        text = "quarterly earnings exceeded analysts expectations considerably despite unfavourable currencies"
        write_split(strange, split, [{**row, "prompt": [user(text)], "chosen": [assistant(text)]} for row in found])
    with pytest.raises(StepError, match=r"does not know \d+% of the tokens of these texts"):
        label("words_", source=strange)
