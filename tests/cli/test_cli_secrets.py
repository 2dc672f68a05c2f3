"""Secrets are told to nobody but their own host: not to a file, a log, a card, an error, or a command line."""

import gzip
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, run_cdpo, write_project
from tests.hub.hub_messages import Account
from tests.hub.hub_server import Hub

sys.path.insert(0, str(ROOT / "tests" / "generate"))

from openai_server import OpenAIServer

#: of huggingface.yaml, of a login, of a server that answers, and those that other programs use
FILE_TOKEN, LOGIN_TOKEN, SERVER_KEY = "hf_leakedfromfile", "hf_leakedfromlogin", "sk-leakedserverkey"
OTHERS = {
    "WANDB_API_KEY": "leakedwandbkey" + "0" * 26,
    "OPENAI_API_KEY": "sk-leakedopenaikey",
    "AWS_SECRET_ACCESS_KEY": "leakedawskey",
}
SECRETS = (FILE_TOKEN, LOGIN_TOKEN, SERVER_KEY, *OTHERS.values())

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 32, tune: 8, eval: 8}}\n"
TASKS = """\
tag: quiet
pipelines: [SFT, RM, DPO, GEN, EVALREWARD, PUSH]
model: [tiny]
dataset: [small]
tasks:
  - {pipeline: SFT}
  - {pipeline: DPO, beta: 0.1}
  - {pipeline: DPR, beta: 0.1, g: 0.3, gamma: 0.3, reward: {step: RM}}
SFT: {max_steps: 2}
RM: {max_steps: 2}
DPO: {max_steps: 2}
DPR: {max_steps: 2, max_new_tokens: 8}
GEN: {max_new_tokens: 8}
"""
SERVED = """\
tag: served
pipelines: [GEN, EVALREWARD]
model: [tiny]
dataset: [small]
tasks: [{pipeline: BASE}]
GEN: {max_new_tokens: 8, backend: openai}
EVALREWARD: {reward: './my.py:score'}
"""
#: a user's function that fails: its error, with its lines, goes to logs and to the terminal
BROKEN = "def score(prompts, responses):\n    raise ValueError('no score today')\n"


def written(place: Path) -> bytes:
    """A file to be searched: what is compressed is read as what it was."""
    data = place.read_bytes()
    if place.suffix == ".parquet":
        table = pq.read_table(place)
        return repr((table.to_pylist(), table.schema.metadata)).encode()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """The command lines of all processes that live meanwhile: any user of the machine can read them."""
    seen: set[str] = set()
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            for place in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(place.read_text(errors="replace"))
                except OSError:
                    continue
            time.sleep(0.2)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        end.set()
        thread.join()


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[OpenAIServer]:
    from cdpo.models import build, load_policy, load_tokenizer, torch_device
    from cdpo.step import Device

    build({"kind": "tiny", "seed": 0}, tmp_path / "tiny")
    model = load_policy(tmp_path / "tiny", device=torch_device(Device(kind="cpu")))
    with OpenAIServer(model, load_tokenizer(tmp_path / "tiny")) as server:
        yield server


@pytest.mark.slow
def test_no_secret_of_the_whole_playground_is_told(tmp_path: Path, answering: OpenAIServer) -> None:
    accounts = {FILE_TOKEN: Account("ada", ("lab",)), LOGIN_TOKEN: Account("ada", ("lab",))}
    folder = write_project(tmp_path / "project", TASKS, datasets=DATASETS)
    (folder / "my.py").write_text(BROKEN)
    (folder / "configs" / "devices.yaml").write_text(
        "gpus: []\nreport_to: [wandb, trackio, tensorboard]\n"
        f"services: {{GEN: {{url: {answering.url}, api: vllm, api_key: SERVER_KEY}}}}\n"
    )
    token_file = folder / "configs" / "services" / "huggingface.yaml"
    token_file.parent.mkdir()
    token_file.write_text(f"{{kind: huggingface, organization: lab, token: {FILE_TOKEN}}}\n")
    told = []

    with Hub(tmp_path / "hub", accounts=accounts) as hub, command_lines() as lines:
        env = {**hub.environment(tmp_path / "cache", None), **OTHERS, "SERVER_KEY": SERVER_KEY, "WANDB_MODE": "offline"}

        def run(*words: object, check: int | None = 0, **more: str) -> None:
            done = run_cdpo("--debug", *words, cwd=folder, check=check, env={**env, **more})
            told.append(done.stdout + done.stderr)

        run("doctor", check=None)
        for words in (["plan"], ["prep"], ["execute", "--display", "json"], ["status"], ["results"]):
            run(*words)
        assert any("/commit/" in each.path for each in hub.requests)
        # what fails says no more
        (folder / "configs" / "tasks.yaml").write_text(SERVED)
        run("execute", check=1)
        assert "no score today" in told[-1]
        assert answering.asked
        (failure,) = (folder / ".cdpo" / "work").glob("*/failure.json")
        run("logs", failure.parent.name)
        assert "no score today" in told[-1]
        hub.faults.add("status", method="POST", status=403, message="no")
        run("push", "-t", "quiet", check=None)
        run("push", "-t", "quiet", HF_ENDPOINT="http://127.0.0.1:9", check=None)
        token_file.write_text(f"{{kind: huggingface, organisation: lab, token: {FILE_TOKEN}}}\n")
        run("plan", check=None)
        token_file.write_text("token: [" + FILE_TOKEN + "\n")
        run("plan", check=None)
        # by a login
        token_file.write_text("{kind: huggingface, organization: lab}\n")
        login = tmp_path / "cache" / "huggingface" / "token"
        login.parent.mkdir(parents=True, exist_ok=True)
        login.write_text(LOGIN_TOKEN)
        run("reproduce", "lab/SFT_tiny_small_s0@quiet", "--to", tmp_path / "again", check=None)
        run("clear", "-t", "quiet", "-y")

    kept = {token_file, login, hub.folder / "accounts.json", hub.folder / "requests.jsonl"}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path not in kept]
    assert len(files) > 100
    for secret in SECRETS:
        assert [path for path in files if secret.encode() in written(path)] == []
        assert not [text for text in told if secret in text]
        assert not [line for line in lines if secret in line]
    used = set()
    for request in hub.requests:
        used.add((request.header("authorization") or "").removeprefix("Bearer "))
        others = [header for header in request.headers if header[0].lower() != "authorization"]
        sent = replace(request, headers=others).everything()
        assert not [secret for secret in SECRETS if secret.encode() in sent]
    assert {FILE_TOKEN, LOGIN_TOKEN} <= used <= {FILE_TOKEN, LOGIN_TOKEN, ""}
    keys = {headers.pop("authorization", "") for _, headers in answering.asked}
    assert f"Bearer {SERVER_KEY}" in keys
    assert keys <= {f"Bearer {SERVER_KEY}", ""}
    sent = json.dumps([answering.asked, answering.bodies])
    assert not [secret for secret in SECRETS if secret in sent]
