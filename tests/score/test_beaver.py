"""PKU's beaver score models: their layout, their format, their normalisation, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from beavers import write_score_model
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from cdpo.data.messages import assistant, user
from cdpo.errors import StepError
from cdpo.score.beaver import conversation, load_score_model
from cdpo.score.scorer import RewardScorer
from cdpo.step import Device, Step

CPU = torch.device("cpu")
PAIRS = [
    ([user("list two birds")], "a heron and an owl"),
    ([user("list two birds")], "no"),
    ([user("list two birds"), assistant("an owl"), user("and the list")], "says a heron, an owl and an owl"),
    ([user("says")], ""),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_score_model(tmp_path_factory.mktemp("beaver") / "reward", bias=0.25)


def scorer(folder: Path, tmp_path: Path, micro_batch: int | None = None, **options: object) -> RewardScorer:
    step = Step("X", "0" * 64, "x", {}, {"reward": str(folder)}, None, Device(micro_batch=micro_batch), tmp_path)
    return RewardScorer.load(step, **options)  # type: ignore[arg-type]


def by_hand(folder: Path, text: str) -> float:
    """The head of the last token's hidden state, from the raw weights: no cdpo, no batch, no mask."""
    weights = load_file(folder / "model.safetensors")
    config = LlamaConfig.from_pretrained(folder)
    backbone = LlamaModel(config).eval()
    backbone.load_state_dict(
        {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
    )
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = backbone(ids).last_hidden_state[0, -1].double()
    return float(hidden @ weights["score_head.weight"][0].double() + weights.get("score_head.bias", torch.zeros(1))[0])


def test_rewards_are_those_of_the_raw_weights(folder: Path, tmp_path: Path) -> None:
    end = "<|end|>"
    texts = [
        f"BEGINNING OF CONVERSATION: USER: list two birds ASSISTANT:a heron and an owl{end}",
        f"BEGINNING OF CONVERSATION: USER: list two birds ASSISTANT:no{end}",
        f"BEGINNING OF CONVERSATION: USER: list two birds ASSISTANT:an owl{end}"
        f"USER: and the list ASSISTANT:says a heron, an owl and an owl{end}",
        f"BEGINNING OF CONVERSATION: USER: says ASSISTANT:{end}",
    ]
    assert [conversation(*pair, end) for pair in PAIRS] == texts
    expected = [by_hand(folder, text) for text in texts]
    assert len({round(value, 4) for value in expected}) == len(expected), "a test that tells responses apart"
    for micro_batch in (1, 3, 16):
        assert scorer(folder, tmp_path, micro_batch).score(PAIRS) == pytest.approx(expected, abs=1e-5)


def test_a_cost_model_is_reversed(folder: Path, tmp_path: Path) -> None:
    rewards = scorer(folder, tmp_path).score(PAIRS)
    assert scorer(folder, tmp_path, reverse=True).score(PAIRS) == [-reward for reward in rewards]


@pytest.mark.parametrize(
    ("kind", "shift", "scale"), [("reward", 0.5, 2.0), ("cost", 0.0, 2.0), (None, 0.5, 2.0)], ids=str
)
def test_normalised_scores(folder: Path, tmp_path: Path, kind: str | None, shift: float, scale: float) -> None:
    more = {} if kind is None else {"score_type": kind}
    named = write_score_model(tmp_path / "named", bias=0.25, do_normalize=True, mean=[0.5], var=[4.0], **more)
    plain, normalised = scorer(folder, tmp_path).score(PAIRS), scorer(named, tmp_path).score(PAIRS)
    assert normalised == pytest.approx([(value - shift) / scale for value in plain], abs=1e-5)
    unused = write_score_model(tmp_path / "unused", bias=0.25, do_normalize=False, mean=[0.5], var=[4.0])
    assert scorer(unused, tmp_path).score(PAIRS) == plain


def test_what_does_not_fit_is_told_and_nothing_is_cut(folder: Path, tmp_path: Path) -> None:
    found = scorer(folder, tmp_path)
    pairs = [PAIRS[0], ([user("says")], "owl " * 1100), ([user("says")], "a<|end|>b"), ([user("a<|end|>")], "b")]
    assert found.fits(pairs) == [True, False, False, False]
    with pytest.raises(StepError, match=r"3 of 4 responses are longer than .*1024 tokens, or spell the token"):
        found.score(pairs)


def test_prompts_that_the_format_does_not_know(folder: Path, tmp_path: Path) -> None:
    system = [{"role": "system", "content": "be brief"}, user("says")]
    for prompt in (system, [user("a"), user("b")], [assistant("a"), user("b")]):
        with pytest.raises(StepError, match=r"one after the other.*roles"):
            scorer(folder, tmp_path).score([(prompt, "no")])


def test_another_format_an_adapter_and_two_scores_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match="format of its own: it takes not the template 'plain'"):
        scorer(folder, tmp_path, template="plain")
    two = write_score_model(tmp_path / "two", score_dim=2)
    with pytest.raises(StepError, match="two gives 2 scores"):
        scorer(two, tmp_path)


def test_missing_weights_are_named(folder: Path, tmp_path: Path) -> None:
    whole = write_score_model(tmp_path / "whole")
    weights = load_file(whole / "model.safetensors")
    for gone in ("score_head.weight", "model.norm.weight"):
        from safetensors.torch import save_file

        save_file({name: value for name, value in weights.items() if name != gone}, whole / "model.safetensors")
        with pytest.raises(StepError, match=rf"no {gone.removeprefix('model.').replace('.', '[.]')}"):
            load_score_model(whole, device=CPU)


@pytest.mark.slow
def test_pickles_are_refused_and_converted(tmp_path: Path, folder: Path) -> None:
    pickled = write_score_model(tmp_path / "pickled", bias=0.25, pickled=True)
    with pytest.raises(StepError, match=r"pickles only.*python -m cdpo[.]score[.]beaver \S+pickled NEW_FOLDER"):
        scorer(pickled, tmp_path)
    command = [sys.executable, "-m", "cdpo.score.beaver", str(pickled), str(tmp_path / "new")]
    assert subprocess.run(command, check=False).returncode == 0
    assert scorer(tmp_path / "new", tmp_path).score(PAIRS) == scorer(folder, tmp_path).score(PAIRS)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1, "never written over"


def test_a_pickled_classifier_is_told_of_the_class_that_keeps_its_head(folder: Path, tmp_path: Path) -> None:
    from cdpo.models import load_reward

    pickled = write_score_model(tmp_path / "pickled", pickled=True)
    described = json.loads((pickled / "config.json").read_text())
    (pickled / "config.json").write_text(json.dumps({**described, "architectures": ["LlamaForSequenceClassification"]}))
    with pytest.raises(StepError, match=r"AutoModelForSequenceClassification[.]from_pretrained"):
        load_reward(pickled, device=CPU)
