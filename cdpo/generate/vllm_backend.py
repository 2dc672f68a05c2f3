"""Responses from vLLM, which runs in a process of its own (cdpo/generate/vllm_process.py), installed beside cdpo or
elsewhere: its memory is free when it ends, and its prints stay out of the step's log.

Every prompt is handed over at once; vLLM batches as responses begin and end. A response depends on its seed, not on its
company, up to the rounding of the logits; vLLM's random numbers are its own, so that the responses to a seed are others
than the transformers backend's, from the same distribution.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from cdpo import trust
from cdpo.errors import StepError
from cdpo.generate.backend import Item, Sampled

if TYPE_CHECKING:
    from cdpo.config.params import SamplingParams

PROCESS = Path(__file__).with_name("vllm_process.py")
#: below the first vLLM draws at it, with no more than a warning; above the second it refuses (its sampling_params.py)
COLDEST, HOTTEST = 0.01, 2.0
#: what its `max_lora_rank` may be (MaxLoRARanks of its config/lora.py)
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: the share of main memory that vLLM has on a CPU where nobody said (nine tenths by its own default: steps share it)
CPU_MEMORY = 0.3
LOG_LINES = 15


class VllmBackend:
    """A model and its adapter, answered for by vLLM on `device` (`cpu` or `cuda`) with weights of type `dtype` (`fp32`,
    `bf16`, `fp16`).

    `python` is the interpreter that has vLLM, `options` are arguments of its engine (cdpo/config/vllm.py), `log` the
    file for what it prints, and `alive` is called every second while nothing comes.
    """

    def __init__(
        self,
        model: Path,
        adapter: Path | None,
        *,
        dtype: str,
        device: str,
        log: Path,
        python: str | None = None,
        options: Mapping[str, Any] | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = {
            **(options or {}),
            "model": str(model),
            "dtype": DTYPES[dtype],
            "skip_tokenizer_init": True,
            # neither pickles nor the model's own idea of how to sample
            "load_format": "safetensors",
            "trust_remote_code": trust.allowed(model),
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
            "disable_log_stats": True,
        }
        if device == "cpu":
            self._engine.setdefault("gpu_memory_utilization", CPU_MEMORY)
            # A prompt that is read in parts has its draw taken back, and torch's generator for CPUs cannot go back.
            self._engine["enable_chunked_prefill"] = False
        if adapter is not None:
            self._engine |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(adapter)}
        self._adapter = None if adapter is None else str(adapter)
        self._device, self._log, self._alive = device, log, alive
        self._python = python or sys.executable
        # its copies of the model's own code are not those that this process makes and reads (see cdpo/trust.py)
        self._environment = {trust.MODULES: str(log.parent / "modules" / "vllm")} if trust.allowed(model) else {}
        self._process: _Process | None = None

    def generate(
        self,
        items: Sequence[Item],
        sampling: "SamplingParams",
        *,
        end_ids: Sequence[int],
        done: Container[int] = (),
    ) -> Iterator[tuple[int, Sampled]]:
        """See `Backend`. Raises StepError where vLLM is not installed, cannot run the model, or ends too early."""
        asked = {at: sampling_of(items[at], sampling, end_ids) for at in range(len(items)) if at not in done}
        if not asked:
            return
        # Its context is what these need and no more: memory for a whole one is asked for when it starts.
        process = self._ready(max(len(items[at].prompt_ids) for at in asked) + sampling.max_new_tokens)
        left = set(asked)
        try:
            for at, settings in asked.items():
                process.send(at=at, prompt_ids=items[at].prompt_ids, sampling=settings)
            process.send(run=True)
            while left:
                said = process.receive(f"with {len(left)} of {len(asked)} responses to come")
                ids: list[int] = said["token_ids"]
                reason: Literal["stop", "length"] = "stop" if ids[-1:] and ids[-1] in end_ids else "length"
                if said["finish_reason"] != reason or said["at"] not in left:
                    raise StepError(
                        f"vLLM ended response {said['at']} with {said['finish_reason']!r} after {len(ids)} tokens, the "
                        f"last {ids[-1:]}; its log is {self._log}"
                    )
                left.remove(said["at"])
                yield said["at"], Sampled(ids, reason, said["logprobs"])
            process.receive("at its end")
        finally:
            # whoever asks no further leaves it at work
            if left:
                self.close()

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _ready(self, tokens: int) -> "_Process":
        """The process, its engine loaded, for up to `tokens` tokens of prompt and response."""
        if self._process is not None and tokens > self._engine["max_model_len"]:
            self.close()
        if self._process is None:
            self._engine["max_model_len"] = tokens
            self._process = _Process(self._python, self._log, self._alive, self._environment)
            self._process.send(engine=self._engine, adapter=self._adapter)
            said = self._process.receive("before its engine was ready")
            if "missing" in said:
                raise StepError(
                    f"backend: vllm, and {said['missing']} has no vLLM: install it there (`pip install vllm`), or name "
                    "the interpreter that has it in devices.yaml, `vllm: {python: /envs/vllm/bin/python}`"
                )
            if said["device"] != self._device:
                raise StepError(
                    f"the step runs on {self._device}, and the vLLM of {self._python} is built for {said['device']}: "
                    "install the build for this machine, or name another interpreter in devices.yaml (`vllm: {python: "
                    "...}`)"
                )
        return self._process


def sampling_of(item: Item, sampling: "SamplingParams", end_ids: Sequence[int]) -> dict[str, Any]:
    """vLLM's SamplingParams for one prompt. EOS ends a response only where it is among `end_ids`."""
    ends = {"max_tokens": sampling.max_new_tokens, "ignore_eos": True, "stop_token_ids": list(end_ids)}
    if not sampling.do_sample:
        return {**ends, "temperature": 0.0}
    temperature = sampling.temperature if item.temperature is None else item.temperature
    if not COLDEST <= temperature <= HOTTEST:
        raise StepError(
            f"temperature {temperature}: vLLM draws at {COLDEST} to {HOTTEST}; take one of these, "
            "`do_sample: false`, or `backend: transformers`"
        )
    return {
        **ends,
        "temperature": temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "seed": item.seed,
    }


def _lora_rank(adapter: Path) -> int:
    """The least `max_lora_rank` that takes the adapter. Raises StepError where there is none."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max(config["r"], *(config.get("rank_pattern") or {}).values(), 1)
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise StepError(f"{adapter} has rank {rank}; vLLM takes up to {LORA_RANKS[-1]}: take `backend: transformers`")


class _Process:
    """The running script: lines of JSON to it, lines of JSON from it, and what became of it where none comes."""

    def __init__(self, python: str, log: Path, alive: Callable[[], None], environment: Mapping[str, str]) -> None:
        self._log, self._alive = log, alive
        log.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = os.pipe()
        try:
            with open(log, "wb") as stream:
                self._popen = subprocess.Popen(
                    [python, str(PROCESS), str(theirs)],
                    stdin=subprocess.PIPE,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs],
                    env={**os.environ, **environment},
                )
        except OSError as error:
            os.close(ours)
            raise StepError(f"vLLM's interpreter {python} does not start: {error.strerror}") from error
        finally:
            os.close(theirs)
        assert self._popen.stdin is not None
        self._input: IO[bytes] = self._popen.stdin
        self._output = os.fdopen(ours, "rb", buffering=0)
        self._rest = b""
        self._lines: list[bytes] = []

    def send(self, **said: Any) -> None:
        # Where it has ended, `receive` says so, and why.
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(said).encode() + b"\n")
            if "at" not in said:
                self._input.flush()

    def receive(self, when: str) -> dict[str, Any]:
        """What it says next. Raises StepError where it has ended, with the end of its log."""
        while not self._lines:
            if not select.select([self._output], [], [], 1.0)[0]:
                self._alive()
                continue
            block = self._output.read(1 << 20)
            if not block:
                raise self._ended(when)
            *self._lines, self._rest = (self._rest + block).split(b"\n")
            self._lines.reverse()
        found: dict[str, Any] = json.loads(self._lines.pop())
        return found

    def _ended(self, when: str) -> StepError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=60)
        self.close()
        code = self._popen.returncode
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LOG_LINES:]
        return StepError("\n  ".join([f"vLLM {how} {when}; the end of its log ({self._log}):", *lines]))

    def close(self) -> None:
        """End it: at once, it holds nothing that is not ours already."""
        self._popen.kill()
        self._popen.wait()
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        self._output.close()
