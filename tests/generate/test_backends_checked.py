"""The backends of the step's own process against the same checks as those outside of it (test_vllm_backend.py)."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import backend_checks as checks
import pytest
import torch

from cdpo.config.params import SamplingParams
from cdpo.errors import OutOfMemory, StepError
from cdpo.generate.backend import Backend, Item
from cdpo.generate.continuous_backend import ContinuousBackend
from cdpo.generate.responses import read_responses
from cdpo.generate.transformers_backend import TransformersBackend
from cdpo.models import load_policy
from cdpo.pipelines.gen import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return checks.build_model(tmp_path_factory.mktemp("checked") / "model")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return checks.build_adapter(folder, folder.parent / "adapter")


@pytest.fixture(scope="module")
def ten_words(folder: Path) -> Path:
    return checks.build_ten_words(folder.parent / "ten_words")


def static(folder: Path, adapter: Path | None) -> Backend:
    return TransformersBackend(checks.load(folder, adapter), pad_id=checks.PAD, batch_size=7)


def continuous(folder: Path, adapter: Path | None) -> Backend:
    return ContinuousBackend(checks.load(folder, adapter), rows=7)


@pytest.fixture(params=[static, continuous], ids=["static", "continuous"])
def open_backend(request: pytest.FixtureRequest) -> Callable[..., Backend]:
    return request.param


def test_greedy(open_backend, folder):
    checks.check_greedy(open_backend, folder)


def test_greedy_with_an_adapter(open_backend, folder, adapter):
    checks.check_greedy(open_backend, folder, adapter)


def test_logprobs(open_backend, folder, adapter):
    checks.check_logprobs(open_backend, folder, adapter)


def test_seeds(open_backend, folder):
    checks.check_seeds(open_backend, folder)


def test_known(open_backend, folder):
    checks.check_known(open_backend, folder)


def test_own_temperatures(open_backend, folder):
    checks.check_own_temperatures(open_backend, folder)


def test_distribution(ten_words):
    def one_batch(folder: Path, _: Path | None) -> Backend:
        return TransformersBackend(checks.load(folder), pad_id=checks.PAD, batch_size=500)

    checks.check_distribution(one_batch, ten_words)


@pytest.mark.slow
def test_distribution_of_continuous_batching(ten_words):
    def several(folder: Path, _: Path | None) -> Backend:
        return ContinuousBackend(checks.load(folder), rows=250)

    checks.check_distribution(several, ten_words, draws=1000, wrong=2.0)


def test_both_draw_the_same(folder, adapter):
    """A mixture of temperatures, filters, an adapter: the very same tokens from the same seeds."""
    items = [Item(each, at, None if at % 2 else 0.6) for at, each in enumerate(checks.prompts(30))]
    sampling = SamplingParams(top_k=40, top_p=0.95, max_new_tokens=24)
    ours = [checks.answers(make(folder, adapter), items, sampling) for make in (static, continuous)]
    assert [each[:2] for each in ours[0]] == [each[:2] for each in ours[1]]


def test_gen_writes_the_same_rows_by_continuous_batching(gen_step):
    rows = []
    for batching in ("static", "continuous"):
        step = gen_step(batching, batching=batching, samples=2, limit=10)
        run(step)
        rows.append([{**row, "logprobs": None} for row in read_responses(step.out)])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 20


def test_the_models_own_generation_config_is_not_asked(folder):
    """A penalty there would bend every distribution, silently."""
    model = checks.load(folder)
    model.generation_config.repetition_penalty = 1.5
    model.generation_config.update(temperature=0.3, do_sample=True, top_k=2)
    items = [Item(each, at) for at, each in enumerate(checks.prompts(8))]
    sampling = SamplingParams(max_new_tokens=24)
    bent = checks.answers(ContinuousBackend(model, rows=4), items, sampling)
    assert [each[:2] for each in bent] == [each[:2] for each in checks.answers(static(folder, None), items, sampling)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(folder, adapter):
    items = [Item(each, at, None if at % 2 else 0.6) for at, each in enumerate(checks.prompts(30))]
    sampling = SamplingParams(top_k=40, top_p=0.95, max_new_tokens=24)
    model = load_policy(folder, adapter, device=torch.device("cuda"))
    ours = checks.answers(ContinuousBackend(model, rows=7), items, sampling)
    theirs = checks.answers(TransformersBackend(model, pad_id=checks.PAD, batch_size=7), items, sampling)
    assert [each[:2] for each in ours] == [each[:2] for each in theirs]


def test_continuous_batching_leaves_the_model_as_it_was(folder):
    model = checks.load(folder)
    before, given = model.config._attn_implementation, torch.tensor([checks.prompts(1)[0]])
    with torch.no_grad():
        logits = model(input_ids=given).logits
        passes: list[int] = []
        counting = model.lm_head.register_forward_hook(lambda *_: passes.append(1))
        stream = ContinuousBackend(model, rows=2).generate(
            [Item(each, 0) for each in checks.prompts(6)], SamplingParams(max_new_tokens=20), end_ids=[]
        )
        next(stream)
        stream.close()
        assert 20 <= len(passes) < 40, "whoever asks no further has the thread stop, where all six need 60 passes"
        assert not any("generation_loop" in thread.name for thread in threading.enumerate())
        counting.remove()
        assert model.config._attn_implementation == before
        assert torch.equal(model(input_ids=given).logits, logits)


@pytest.mark.parametrize(
    ("raised", "seen"), [(RuntimeError("CUDA out of memory"), OutOfMemory), (ValueError("odd"), ValueError)], ids=str
)
def test_what_ends_the_thread_ends_the_step(folder, raised: Exception, seen: Any):
    model = checks.load(folder)

    def fail(*_: Any) -> None:
        raise raised

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(seen, match=str(raised)):
        list(
            ContinuousBackend(model, rows=2).generate([Item([2, 8], 0)], SamplingParams(max_new_tokens=3), end_ids=[3])
        )


def test_another_transformers_is_found_out(folder, monkeypatch):
    """Rows in another order than announced would give each prompt another's response."""
    import cdpo.generate.continuous_backend as module

    prepare = module._Drawing.prepare_tensor_args
    monkeypatch.setattr(module._Drawing, "prepare_tensor_args", lambda self, found: prepare(self, found[::-1]))
    with pytest.raises(StepError, match="does not do what cdpo counts on"):
        checks.answers(continuous(folder, None), [Item(each, 0) for each in checks.prompts(6)], SamplingParams())
