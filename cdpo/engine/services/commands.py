"""The command lines of the servers that cdpo knows, and of a user's own."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdpo.engine.gpus.nvml import Gpu
from cdpo.files import read_json
from cdpo.weights import TORCH_NAMES, stored_dtype

#: by which a server lists the model of its step
NAME = "served"
#: what vLLM's --max-lora-rank may be
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def needs_merging(keep: Mapping[str, Any]) -> bool:
    """Whether the server must be given model and adapter as one: only vLLM takes them apart."""
    return keep["adapter"] is not None and keep["server"] != "vllm"


def names(keep: Mapping[str, Any], folder: Path) -> list[str]:
    """What the server may call its model, the best first."""
    if isinstance(keep["server"], list):
        return [NAME, str(folder / "model")]
    return ["model"] if keep["server"] == "transformers" else [NAME]


def command(keep: Mapping[str, Any], folder: Path, port: int) -> list[str]:
    """How the server of the service in `folder` is started; its model is `folder/model`."""
    server, python = keep["server"], keep["python"]
    model = str(folder / "model")
    # never the server's `auto`, which vLLM takes for bf16 where weights are stored in fp32
    kind = keep.get("dtype", "auto")
    dtype = TORCH_NAMES[stored_dtype(folder / "model") if kind == "auto" else kind]
    if isinstance(server, list):
        first = python if server[0] == "python" else server[0]
        words = [first, *server[1:], *keep["options"]]
        for name, value in (("port", str(port)), ("model", model), ("name", NAME), ("dtype", dtype)):
            words = [word.replace(f"{{{name}}}", value) for word in words]
        return words
    where = ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    if server == "transformers":
        # by a relative path (see `working_folder`), because `@` and `:` mean something to it
        if "attn_implementation" in keep:
            where += ["--attn-implementation", keep["attn_implementation"]]
        return [python, "-m", "transformers.cli.transformers", "serve", "model", *where, *keep["options"]]
    # not `vllm serve`, which asks for its version by a name that builds for CPUs do not have
    words = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *where]
    # else it would sample by the generation_config.json of the model where a request says nothing
    # and its log-probabilities could be those after temperature, top-k and top-p
    words += ["--logprobs-mode", "raw_logprobs"]
    words += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    if keep.get("trusted"):
        words.append("--trust-remote-code")
    if keep["processes"] > 1:
        words += ["--tensor-parallel-size", str(keep["processes"])]
    if keep["adapter"] is None:
        return [*words, "--served-model-name", NAME, *keep["options"]]
    adapter = Path(keep["adapter"])
    rank = int(read_json(adapter / "adapter_config.json")["r"])
    words += ["--served-model-name", f"{NAME}-base", "--enable-lora"]
    words += ["--max-lora-rank", str(next((each for each in RANKS if each >= rank), rank))]
    words += ["--lora-modules", json.dumps({"name": NAME, "path": str(adapter)})]
    if (adapter / "tokenizer_config.json").exists():
        words += ["--tokenizer", str(adapter)]
    return [*words, *keep["options"]]


def working_folder(keep: Mapping[str, Any], folder: Path) -> Path:
    return Path(keep["folder"]) if isinstance(keep["server"], list) else folder


def environment(keep: Mapping[str, Any], gpus: list[Gpu]) -> dict[str, str]:
    """What the server's environment has beside the keeper's."""
    found = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in gpus)}
    if keep["server"] == "vllm":
        if all(gpu.uuid.startswith("GPU-") for gpu in gpus):
            # vLLM before 0.24 takes no UUIDs
            found["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu.index) for gpu in gpus)
        found |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
    if isinstance(keep["server"], list):
        # a script of the user's finds the modules beside it
        found["PYTHONSAFEPATH"] = ""
    return found


def title(keep: Mapping[str, Any]) -> str:
    """What kind of server it is, in a word."""
    server = keep["server"]
    return os.path.basename(server[0]) if isinstance(server, list) else str(server)
