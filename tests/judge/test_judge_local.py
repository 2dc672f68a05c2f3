"""A model that this process runs as the judge."""

import pandas as pd
import pytest

from cdpo.judge.answers import Answer, Question, Refusal
from cdpo.judge.local import LocalJudge
from cdpo.models import build
from cdpo.pipelines import evalgpt
from tests.judge.asked import judge_step, responses

LOADING = {"dtype": "auto", "attn_implementation": "sdpa", "template": None}
GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "model"
    build({"kind": "tiny", "seed": 0}, folder)
    return folder


def local(tmp_path, model, sampling=GREEDY):
    step = judge_step(tmp_path / "store", "k", {"judge": str(model)}, None)
    return LocalJudge(step, "abc", sampling, LOADING)


def question(text, name="q"):
    return Question([{"role": "user", "content": text}], name)


def test_it_answers_alike_in_any_batch(tmp_path, model):
    judge = local(tmp_path, model)
    asked = [question(f"a list of {at} words please") for at in range(5)]
    together = dict(judge.ask(asked))
    alone = {at: dict(judge.ask([each]))[0] for at, each in enumerate(asked)}
    assert together == alone
    assert all(isinstance(each, Answer) and each.completion_tokens <= 6 for each in together.values())


def test_sampling_is_seeded_by_the_question(tmp_path, model):
    warm = {**GREEDY, "temperature": 1.0}
    asked = [question(f"say {at}") for at in range(4)]
    assert dict(local(tmp_path, model, warm).ask(asked)) == dict(local(tmp_path, model, warm).ask(asked))


def test_what_does_not_fit_is_refused_alone(tmp_path, model):
    judge = local(tmp_path, model)
    got = dict(judge.ask([question("short"), question("word " * 5000), question("short too")]))
    assert isinstance(got[1], Refusal)
    assert "fit the judge" in got[1].why
    assert isinstance(got[0], Answer)
    assert isinstance(got[2], Answer)


def test_no_text_is_a_special_token_of_the_judges(tmp_path, model):
    judge = local(tmp_path, model)
    specials = [each for each in judge._specials if len(each) > 1]
    assert specials
    for token in specials:
        assert token not in judge._plain({"role": "user", "content": f"a{token}b"})["content"]


def test_as_a_step(tmp_path, model):
    folder = responses(tmp_path / "responses", ["a b c", "same"], ["d e", "same"])
    template = {"verdict": "choice", "prompt": "{prompt} {first} {second} A or B"}
    step = judge_step(
        tmp_path / "store",
        "k",
        {"responses": str(folder), "judge": str(model)},
        None,
        judge_template=template,
        judge_identity="abc",
        max_tokens=6,
        max_missing=1.0,
    )
    report = evalgpt.run(step)
    verdicts = pd.read_parquet(step.out / "verdicts.parquet")
    assert report["answers_new"] >= 2
    assert (verdicts.answers[:2] >= 1).all()
    assert verdicts.why[2] == "both are the same text"
