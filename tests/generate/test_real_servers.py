"""`backend: openai` with real servers: the checks of every backend with vLLM's, greedy and seeds with transformers'."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import backend_checks as checks
import numpy as np
import pytest
import torch
from real_servers import transformers_serve, vllm_serve

from cdpo.config.params import SamplingParams
from cdpo.errors import StepError
from cdpo.generate.backend import Item
from cdpo.generate.endpoint import Address, Endpoint
from cdpo.generate.openai_backend import OpenAIBackend, Server
from cdpo.models import load_tokenizer
from tests.conftest import ROOT

ENVIRONMENT = ROOT / ".venv-vllm"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.build_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return checks.build_adapter(folder, folder.parent / "adapter")


@pytest.fixture(scope="module")
def transformers_url(folder: Path) -> Iterator[str]:
    with transformers_serve(folder, folder.parent / "transformers.log") as url:
        yield url


@pytest.fixture(scope="module")
def vllm_url(folder: Path, adapter: Path) -> Iterator[str]:
    if not (ENVIRONMENT / "ready").exists():
        pytest.skip("no .venv-vllm: `make vllm-env`")
    with vllm_serve(str(ENVIRONMENT / "bin" / "python"), folder, adapter, folder.parent / "vllm.log") as url:
        yield url


def client(url: str, name: str, folder: Path, server: Server, concurrency: int) -> OpenAIBackend:
    endpoint = Endpoint(lambda: Address(url, name), concurrency=concurrency, timeout=120, retries=1)
    # the model of ten words has no template of its own, and needs none
    template = "plain" if folder.name.startswith("ten_words") else None
    return OpenAIBackend(endpoint, load_tokenizer(folder, None, template), server=server)


@pytest.fixture
def by_vllm(vllm_url: str) -> Callable[..., OpenAIBackend]:
    def open_backend(folder: Path, adapter: Path | None = None) -> OpenAIBackend:
        return client(vllm_url, "policy" if adapter is None else "adapted", folder, "vllm", 16)

    return open_backend


def test_vllm_greedy(by_vllm, folder, adapter):
    checks.check_greedy(by_vllm, folder)
    checks.check_greedy(by_vllm, folder, adapter)


def test_vllm_draws(by_vllm, folder, adapter):
    checks.check_logprobs(by_vllm, folder, adapter)
    checks.check_seeds(by_vllm, folder)
    checks.check_known(by_vllm, folder)
    checks.check_own_temperatures(by_vllm, folder)


def test_vllm_distribution(folder):
    if not (ENVIRONMENT / "ready").exists():
        pytest.skip("no .venv-vllm: `make vllm-env`")
    ten_words = checks.build_ten_words(folder.parent / "ten_words_of_vllm")
    python, log = str(ENVIRONMENT / "bin" / "python"), folder.parent / "vllm_ten_words.log"
    with vllm_serve(python, ten_words, None, log) as url:
        checks.check_distribution(
            lambda folder, _: client(url, "policy", folder, "vllm", 16), ten_words, draws=1000, wrong=2.0
        )


def test_transformers_distribution(folder):
    """It tells texts alone: the four special tokens are one text, the empty one."""
    ten_words = checks.build_ten_words(folder.parent / "ten_words_of_transformers")
    with torch.no_grad():
        logits = checks.load(ten_words)(input_ids=torch.tensor([checks.PROMPT])).logits[0, -1].double().numpy()
    words = ["", *"abcdef"]
    with transformers_serve(ten_words, folder.parent / "transformers_ten_words.log") as url:
        for number, case in enumerate([{"temperature": 0.6}, {"temperature": 0.8, "top_p": 0.7}]):
            items = [Item(checks.PROMPT, at * 104729 + number) for at in range(400)]
            said = texts(url, ten_words, items, SamplingParams(**case, max_new_tokens=1))
            counts = np.array([sum((text or "").strip() == word for text in said) for word in words])
            assert counts.sum() == 400
            right, wrong = (
                checks.exact(logits, **{**case, "temperature": heat * case["temperature"]}) for heat in (1, 2)
            )
            assert checks.p_value(counts, np.array([right[:4].sum(), *right[4:]])) > 1e-3, (case, counts)
            assert checks.p_value(counts, np.array([wrong[:4].sum(), *wrong[4:]])) < 1e-6, (case, counts)


def texts(url: str, folder: Path, items: list[Item], sampling: SamplingParams) -> list[str | None]:
    backend = client(url, str(folder), folder, "transformers", 1)
    try:
        return [each.text for each in checks.answers(backend, items, sampling)]
    finally:
        backend.close()


def test_transformers_greedy(transformers_url, folder):
    items = [Item(each, 0) for each in checks.prompts(12)]
    said = texts(transformers_url, folder, items, SamplingParams(do_sample=False, max_new_tokens=16))
    model, tokenizer = checks.load(folder), load_tokenizer(folder)
    for item, text in zip(items, said, strict=True):
        given = torch.tensor([item.prompt_ids])
        made = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=checks.ENDS,
            pad_token_id=checks.PAD,
        )[0, given.shape[1] :]
        assert text == tokenizer.decode(made, skip_special_tokens=True)
    assert len(set(said)) > 8


def test_transformers_samples_where_it_is_told_to(transformers_url, folder):
    """It samples by the model's generation_config alone, unless each request brings one."""
    prompt = checks.prompts(1)[0]
    items = [Item(prompt, seed) for seed in range(12)]
    sampling = SamplingParams(temperature=0.9, max_new_tokens=16)
    once = texts(transformers_url, folder, items, sampling)
    assert once == texts(transformers_url, folder, items[::-1], sampling)[::-1], "the same seeds, the same texts"
    assert len(set(once)) > 9
    assert len(set(texts(transformers_url, folder, items, sampling.model_copy(update={"top_k": 1})))) == 1


def test_what_transformers_serve_does_not_take(transformers_url, folder):
    """What the client is written around; where one of these passes, it can be simpler."""

    def status(**body: Any) -> int:
        request = urllib.request.Request(
            f"{transformers_url}/completions",
            json.dumps({"max_tokens": 2, **body}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert status(prompt="one two") == 200
    assert status(prompt=[2, 8, 9]) == 400
    assert status(prompt="one", model="another") == 400
    assert status(prompt="one", top_k=3) == 422
    assert status(prompt="one", stop=["two"]) == 500


def test_a_name_that_is_not_served(vllm_url, folder):
    backend = client(vllm_url, "nobody", folder, "vllm", 2)
    try:
        with pytest.raises(StepError, match=r"(?s)404.*nobody"):
            checks.answers(backend, [Item([2, 8], 0)], SamplingParams(max_new_tokens=2))
    finally:
        backend.close()
