"""`transformers serve` as the judge: a real server of OpenAI's API, over a model of the tests."""

import importlib.util

import pandas as pd
import pytest

from cdpo.models import build
from cdpo.pipelines import evalgpt
from tests.generate.real_servers import transformers_serve
from tests.judge.asked import judge_step, responses, service

TEMPLATE = {"verdict": "choice", "prompt": "{prompt} {first} {second} A or B"}


@pytest.mark.slow
def test_transformers_serve_judges(tmp_path):
    if importlib.util.find_spec("fastapi") is None:
        pytest.skip("transformers serve needs pip install 'transformers[serving]'")
    model = tmp_path / "model"
    build({"kind": "tiny", "seed": 0}, model)
    folder = responses(tmp_path / "responses", ["a b c", "d", "same"], ["d e", "e f", "same"])
    with transformers_serve(model, tmp_path / "log") as url:
        given = service(url, model=str(model), concurrency=2, prices=False)
        options = {"judge_template": TEMPLATE, "max_tokens": 6, "attempts": 1, "max_missing": 1.0}
        step = judge_step(tmp_path / "store", "k1", {"responses": str(folder)}, given, **options)
        report = evalgpt.run(step)
        again = judge_step(tmp_path / "store", "k2", {"responses": str(folder)}, given, **options)
        assert evalgpt.run(again)["answers_kept"] == 4
    assert report["answers_new"] == 4
    verdicts = pd.read_parquet(step.out / "verdicts.parquet")
    assert (verdicts.prompt_tokens[:4] > 0).all()
    assert (verdicts.completion_tokens[:4] <= 6).all()
