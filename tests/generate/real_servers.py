"""Real servers of OpenAI's API over a model of the tests: `transformers serve`, and vLLM's."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

#: a small cache, no cores of its own and no compiler: vLLM starts in 10 s, and others have the machine too
VLLM_SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@contextlib.contextmanager
def transformers_serve(folder: Path, log: Path) -> Iterator[str]:
    """Its address, which ends in /v1; the model is called by the path of `folder`."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    with _running(command, {}, log) as url:
        yield url


@contextlib.contextmanager
def vllm_serve(python: str, folder: Path, adapter: Path | None, log: Path) -> Iterator[str]:
    """Its address, which ends in /v1; the model is called `policy`, and with `adapter` (of rank 32 at most) `adapted`.

    The console script of vLLM's build for CPUs looks for a package of another name and fails.
    """
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "policy", "--dtype", "float32", "--enforce-eager"]
    # a share of memory that is there; and prompts read whole, because torch's generators for CPUs cannot go back
    command += ["--gpu-memory-utilization", "0.15", "--no-enable-chunked-prefill"]
    if adapter is not None:
        command += ["--enable-lora", "--max-lora-rank", "32", "--lora-modules", f"adapted={adapter}"]
    with _running(command, VLLM_SETTINGS, log) as url:
        yield url


@contextlib.contextmanager
def _running(command: Sequence[str], settings: Mapping[str, str], log: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings},
            start_new_session=True,
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(health, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text(errors='replace')[-3000:]}")
