"""`backend: vllm` with a real vLLM, in the environment that `make vllm-env` makes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import backend_checks as checks
import pytest

from cdpo import trust
from cdpo.config.params import SamplingParams
from cdpo.engine.process import identity, is_alive
from cdpo.errors import StepError
from cdpo.generate.backend import Item
from cdpo.generate.responses import read_responses
from cdpo.generate.vllm_backend import VllmBackend
from cdpo.models import build
from cdpo.pipelines.gen import run
from tests.conftest import ROOT
from tests.trust.custom_models import Custom

ENVIRONMENT = ROOT / ".venv-vllm"
PYTHON = str(ENVIRONMENT / "bin" / "python")
#: a small cache, no cores of its own and no compiler: it starts in 10 s, and others have the machine too
SETTINGS = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
OPTIONS = {"enforce_eager": True, "gpu_memory_utilization": 0.15}

real = pytest.mark.skipif(not (ENVIRONMENT / "ready").exists(), reason="no .venv-vllm: `make vllm-env`")


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checks.build_model(tmp_path_factory.mktemp("vllm") / "model")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return checks.build_adapter(folder, folder.parent / "adapter")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., VllmBackend]:
    def make_backend(folder: Path, adapter: Path | None = None, **options: Any) -> VllmBackend:
        given: dict[str, Any] = {"dtype": "fp32", "device": "cpu", "python": PYTHON, "options": OPTIONS, **options}
        return VllmBackend(folder, adapter, log=tmp_path / "vllm.log", **given)

    return make_backend


@pytest.mark.slow
@real
def test_greedy(make, folder):
    checks.check_greedy(make, folder)


@pytest.mark.slow
@real
def test_an_adapter(make, folder, adapter):
    checks.check_greedy(make, folder, adapter)
    checks.check_logprobs(make, folder, adapter)


@pytest.mark.slow
@real
def test_draws(make, folder):
    checks.check_seeds(make, folder)
    checks.check_known(make, folder)
    checks.check_own_temperatures(make, folder)


@pytest.mark.slow
@real
def test_distribution(make, folder):
    checks.check_distribution(make, checks.build_ten_words(folder.parent / "ten_words"))


@pytest.mark.slow
@real
def test_code_of_a_model_runs_where_it_is_trusted(make, tmp_path):
    custom = Custom(tmp_path / "model", tmp_path / "marker")
    plain = tmp_path / "plain"
    build({"kind": "tiny", "seed": 0}, plain)
    greedy = SamplingParams(do_sample=False, max_new_tokens=4)

    def first(folder: Path) -> list[int]:
        with closing(make(folder)) as backend:
            ((_, sampled),) = backend.generate([Item([5, 6, 7], 1)], greedy, end_ids=[])
        return sampled.token_ids

    with pytest.raises(StepError, match="custom code"):
        first(custom.folder)
    assert custom.ran == []
    trust.allow([custom.folder], tmp_path / "copies")
    assert first(custom.folder) == first(plain)
    # not in the copies of this process
    assert {copy for _, _, copy in custom.ran} == {str(tmp_path / "modules" / "vllm")}


@pytest.mark.slow
@real
def test_what_the_model_says_of_sampling_and_ends_is_not_asked(make, folder, tmp_path):
    """generation_config.json with a penalty and other ends: neither is the experiment's."""
    from transformers import AutoModelForCausalLM

    bent = AutoModelForCausalLM.from_pretrained(folder)
    bent.generation_config.update(
        repetition_penalty=1.8, do_sample=True, temperature=0.2, eos_token_id=list(range(10, 60))
    )
    bent.save_pretrained(tmp_path / "bent")
    items = [Item(each, at) for at, each in enumerate(checks.prompts(12))]
    sampling = SamplingParams(max_new_tokens=24)
    found = []
    for model in (folder, tmp_path / "bent"):
        with closing(make(model)) as backend:
            found.append(checks.answers(backend, items, sampling))
    assert [each[:2] for each in found[0]] == [each[:2] for each in found[1]]


@pytest.mark.slow
@real
def test_gen_goes_on_where_it_was_killed(gen_step, folder):
    """What vLLM had finished is in the journal; the rows are those of a run that nobody killed."""
    settings = {"backend": "vllm", "limit": 30, "max_new_tokens": 200}
    whole, cut = gen_step("whole", **settings), gen_step("cut", **settings)
    for step in (whole, cut):
        step.inputs = {**step.inputs, "model": str(folder)}
        step.device.vllm = {"python": PYTHON, "options": {**OPTIONS, "max_num_seqs": 2}}
    run(whole)
    described = json.loads((cut.work / "step.json").read_text())
    described |= {"inputs": cut.inputs, "device": dataclasses.asdict(cut.device)}
    (cut.work / "step.json").write_text(json.dumps(described))
    process = subprocess.Popen([sys.executable, "-m", "cdpo.pipelines.gen", str(cut.work)], cwd=ROOT)
    journal = cut.checkpoints / "responses.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 4 <= journal.read_bytes().count(b"\n") < 30
    run(cut)
    rows = [
        [(row["prompt_id"], row["token_ids"], row["seed"]) for row in read_responses(step.out)] for step in (whole, cut)
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 30
    assert "Initializing a V1 LLM engine" in (cut.work / "vllm.log").read_text()


@pytest.mark.slow
@real
def test_more_prompts_than_one_pass_reads(make, folder):
    """vLLM for CPUs dies where a prompt is read in parts and has a seed."""
    items = [Item([2, *[8 + at % 50, 9] * 50], at) for at in range(60)]
    with closing(make(folder)) as backend:
        assert len(checks.answers(backend, items, SamplingParams(max_new_tokens=8))) == 60


@pytest.mark.slow
@real
def test_longer_prompts_come_later(make, folder):
    """The engine was sized for the first ones: it is started anew."""
    short, long = [Item([2, 8, 9], 0)], [Item([2, *[8, 9] * 100], 0)]
    sampling = SamplingParams(do_sample=False, max_new_tokens=5)
    with closing(make(folder)) as backend:
        for items in (short, long, short):
            assert len(checks.answers(backend, items, sampling)) == 1
    alone = make(folder)
    with closing(alone):
        assert len(checks.answers(alone, long, sampling)) == 1


@pytest.mark.slow
@real
def test_a_killed_child_is_told_and_leaves_nobody(make, folder):
    items = [Item(each, at) for at, each in enumerate(checks.prompts(40))]
    backend = make(folder)
    stream = backend.generate(items, SamplingParams(max_new_tokens=400), end_ids=[])
    next(stream)
    who = identity(backend._process.process.pid)
    os.kill(who["pid"], signal.SIGKILL)
    with pytest.raises(
        StepError, match=r"vLLM was killed \(SIGKILL\) with \d+ of 40 responses to come; the end of its log"
    ):
        list(stream)
    assert not is_alive(who)
    backend.close()


@pytest.mark.slow
@real
def test_it_does_not_outlive_its_worker(folder, tmp_path):
    """SIGKILL to who started it: its standard input ends, and so does it."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom cdpo.generate.vllm_backend import VllmBackend\n"
        "from cdpo.generate.backend import Item\nfrom cdpo.config.params import SamplingParams\n"
        f"backend = VllmBackend(Path({str(folder)!r}), None, dtype='fp32', device='cpu', python={PYTHON!r}, "
        f"options={OPTIONS!r}, log=Path({str(tmp_path / 'log')!r}))\n"
        "stream = backend.generate([Item([2, 8], 0)], SamplingParams(max_new_tokens=3), end_ids=[])\n"
        "print(next(stream), backend._process.process.pid, flush=True)\nsys.stdin.read()\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout is not None
    child = identity(int(worker.stdout.readline().split()[-1]))
    assert is_alive(child)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)
    worker.stdout.close()
    worker.stdin.close()


@pytest.mark.slow
@real
def test_what_vllm_refuses_is_told_in_its_words(make, folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "nonsense", "architectures": ["Nonsense"]}))
    with pytest.raises(StepError, match=r"(?s)ended with exit code 1 before its engine was ready.*nonsense"):
        list(make(broken).generate([Item([2], 0)], SamplingParams(max_new_tokens=1), end_ids=[3]))
    with closing(make(folder, device="cuda")) as backend, pytest.raises(StepError, match="is built for cpu"):
        list(backend.generate([Item([2], 0)], SamplingParams(max_new_tokens=1), end_ids=[3]))


def test_an_interpreter_without_vllm(make, folder):
    with closing(make(folder, python=sys.executable)) as backend:
        with pytest.raises(StepError, match=rf"{sys.executable} has no vLLM: install it there .*devices.yaml"):
            list(backend.generate([Item([2], 0)], SamplingParams(max_new_tokens=1), end_ids=[3]))


def test_an_interpreter_that_does_not_start(make, folder, tmp_path):
    for python, why in ((tmp_path / "absent", "No such file"), (folder / "config.json", "Permission denied")):
        with pytest.raises(StepError, match=why):
            list(make(folder, python=str(python)).generate([Item([2], 0)], SamplingParams(), end_ids=[3]))


def test_an_interpreter_that_dies(make, folder):
    with pytest.raises(StepError, match="vLLM ended with exit code 1 before its engine was ready"):
        list(make(folder, python="/bin/false").generate([Item([2], 0)], SamplingParams(), end_ids=[3]))


def test_what_vllm_would_draw_otherwise_is_refused(tmp_path):
    """It draws at 0.01, with a warning in its log, where a lower temperature is asked for."""
    from cdpo.generate.vllm_backend import _lora_rank, sampling_of

    for temperature in (0.005, 2.5):
        with pytest.raises(StepError, match=rf"temperature {temperature}: vLLM draws at 0.01 to 2.0"):
            sampling_of(Item([2], 0, temperature), SamplingParams(), [3])
    for temperature in (0.01, 2.0):
        assert sampling_of(Item([2], 7, temperature), SamplingParams(top_p=0.5), [3])["temperature"] == temperature
    for config, rank in (({"r": 24}, 32), ({"r": 8, "rank_pattern": {"q_proj": 100}}, 128), ({"r": 512}, 512)):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert _lora_rank(tmp_path) == rank
    (tmp_path / "adapter_config.json").write_text('{"r": 600}')
    with pytest.raises(StepError, match="rank 600; vLLM takes up to 512"):
        _lora_rank(tmp_path)
