"""How servers are started, and how their answers are understood."""

import itertools
import json
import socket
import sys
from dataclasses import replace

import pytest

from cdpo.config.devices import Devices
from cdpo.engine.gpus.nvml import Gpu
from cdpo.engine.services import commands, prepare
from cdpo.engine.services.describe import obstacles
from cdpo.engine.services.listening import free_port, listens
from cdpo.engine.services.probe import Unfit, choose
from cdpo.engine.services.server import first_error
from cdpo.plan.graph import PlannedStep

KEEP = {"server": "vllm", "python": "/envs/v/bin/python", "options": ["--max-model-len", "64"], "processes": 1}
CARDS = [Gpu(3, "GPU-cc", "A"), Gpu(5, "GPU-ee", "A")]


@pytest.fixture(autouse=True)
def stored(tmp_path):
    """A room whose model is stored in fp32."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"dtype": "float32"}')


def test_vllm_serves_a_model_under_our_name_and_samples_as_requests_say(tmp_path):
    words = commands.command({**KEEP, "adapter": None, "processes": 2}, tmp_path, 4711)
    assert words[:3] == ["/envs/v/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert words[3:5] == ["--model", str(tmp_path / "model")]
    said = " ".join(words)
    assert "--host 127.0.0.1 --port 4711" in said
    assert "--generation-config vllm" in said
    assert "--tensor-parallel-size 2" in said
    assert "--served-model-name served" in said
    # the user has the last word
    assert words[-2:] == ["--max-model-len", "64"]


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (9, 16), (64, 64), (300, 320)])
def test_vllm_takes_an_adapter_as_it_is(tmp_path, rank, most):
    adapter = tmp_path / "an = adapter, odd"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": rank}))
    keep = {**KEEP, "adapter": str(adapter)}
    assert not commands.needs_merging(keep)
    words = commands.command(keep, tmp_path, 1)
    after = dict(itertools.pairwise(words))
    assert json.loads(after["--lora-modules"]) == {"name": "served", "path": str(adapter)}
    assert after["--max-lora-rank"] == str(most)
    assert after["--served-model-name"] == "served-base"
    assert "--enable-lora" in words
    assert "--tokenizer" not in words
    (adapter / "tokenizer_config.json").write_text("{}")
    assert commands.command(keep, tmp_path, 1)[-4:-2] == ["--tokenizer", str(adapter)]


def test_others_are_given_one_merged_model(tmp_path):
    keep = {**KEEP, "server": "transformers", "adapter": "/adapter"}
    assert commands.needs_merging(keep)
    words = commands.command(keep, tmp_path, 1)
    assert words[1:7] == ["-m", "transformers.cli.transformers", "serve", "model", "--host", "127.0.0.1"]
    assert commands.working_folder(keep, tmp_path) == tmp_path
    assert commands.names(keep, tmp_path) == ["model"]


@pytest.mark.parametrize(("asked", "told"), [("auto", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_servers_compute_in_the_type_that_the_task_says(tmp_path, asked, told):
    """By themselves they would not: vLLM's `auto` takes bf16 for a model that is stored in fp32."""
    for server in ("vllm", "transformers"):
        words = commands.command({**KEEP, "server": server, "adapter": None, "dtype": asked}, tmp_path, 1)
        assert words[words.index("--dtype") + 1] == told
    keep = {**KEEP, "server": ["x", "{dtype}"], "adapter": None, "dtype": asked}
    assert commands.command(keep, tmp_path, 1)[1] == told
    eager = {**KEEP, "server": "transformers", "adapter": None, "attn_implementation": "eager"}
    words = commands.command(eager, tmp_path, 1)
    assert words[words.index("--attn-implementation") + 1] == "eager"


def test_code_of_a_model_is_run_by_vllm_where_the_step_trusts_it(tmp_path):
    keep = {**KEEP, "adapter": None}
    assert "--trust-remote-code" not in commands.command(keep, tmp_path, 1)
    assert "--trust-remote-code" in commands.command({**keep, "trusted": True}, tmp_path, 1)


def test_transformers_serves_no_model_that_brings_code():
    given = {"folder": "/m", "sha256": "0"}
    plain = PlannedStep("a" * 64, "GEN", "a", 1, {"backend": "openai"}, {"model": given}, 0)
    own = replace(plain, inputs={"model": {**given, "trusted": True}}, trusted=["model"])
    for server, count in (("transformers", 1), (["x", "{port}", "{model}"], 0)):
        devices = Devices.model_validate({"services": {"GEN": {"server": server}}})
        assert not any("brings code" in text for text in obstacles(devices, [plain]))
        assert sum("brings code" in text for text in obstacles(devices, [own])) == count


def test_in_a_command_of_ones_own_only_names_in_braces_are_replaced(tmp_path):
    mine = ["python", "serve.py", "--at={port}", "{model}", "{name}", '{"json": {"x": 1}}']
    keep = {**KEEP, "server": mine, "folder": "/project", "adapter": None}
    words = commands.command(keep, tmp_path, 12)
    model = str(tmp_path / "model")
    assert words[:5] == ["/envs/v/bin/python", "serve.py", "--at=12", model, "served"]
    assert words[5:] == ['{"json": {"x": 1}}', "--max-model-len", "64"]
    assert str(commands.working_folder(keep, tmp_path)) == "/project"


def test_gpus_are_called_by_uuid_and_for_vllm_by_number():
    seen = {
        kind: commands.environment({"server": kind}, CARDS)["CUDA_VISIBLE_DEVICES"] for kind in ("vllm", "transformers")
    }
    assert seen == {"vllm": "3,5", "transformers": "GPU-cc,GPU-ee"}
    assert commands.environment({"server": "vllm"}, [Gpu(0, "MIG-a", "A")])["CUDA_VISIBLE_DEVICES"] == "MIG-a"
    assert commands.environment({"server": "vllm"}, [])["CUDA_VISIBLE_DEVICES"] == ""


def test_the_model_is_the_one_of_our_name_or_the_only_one():
    assert choose(["served-base", "served"], ["served"], "u") == "served"
    assert choose(["/m"], ["served"], "u") == "/m"
    assert choose([], ["served", "/m"], "u") == "served"
    with pytest.raises(Unfit, match="u lists a, b, and not served"):
        choose(["a", "b"], ["served"], "u")
    with pytest.raises(Unfit, match="u lists a, b: `model:` says which one is meant"):
        choose(["a", "b"], [], "u")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_who_listens_at_a_port_is_known(family):
    import os

    port = free_port()
    assert listens([os.getpid()], port) is None
    with socket.socket(family) as listening:
        listening.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
        listening.listen()
        assert listens([os.getppid(), os.getpid()], port) is True
        assert listens([os.getppid(), 2**22 + 7], port) is False


def test_a_model_is_linked_without_what_would_change_its_sampling(tmp_path):
    model = tmp_path / "a model"
    (model / "sub").mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "sub/x.txt"):
        (model / name).write_text(name)
    room = tmp_path / "room"
    room.mkdir()
    prepare.link(model, room / "model")
    assert sorted(path.name for path in (room / "model").iterdir()) == ["config.json", "sub"]
    assert (room / "model" / "sub" / "x.txt").read_text() == "sub/x.txt"
    prepare.clear(room)
    assert (model / "config.json").exists()
    assert not (room / "model").exists()


def test_the_first_error_of_a_log_is_the_cause(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "(API pid=1) WARNING [x.py:2] may cause errors like `OSError: [Errno 24]`\n"
        "(Worker pid=2) ERROR 11-21 [y.py:3] Traceback (most recent call last):\n"
        "(Worker pid=2) ERROR 11-21 [y.py:3] ValueError: too little memory\n"
        "RuntimeError: initialization failed, see above\n"
    )
    assert first_error(log) == "ValueError: too little memory"
    assert first_error(tmp_path / "none") is None
    log.write_text("torch.OutOfMemoryError: CUDA out of memory\n")
    assert first_error(log) == "torch.OutOfMemoryError: CUDA out of memory"


def test_the_client_imports_no_torch():
    import subprocess

    code = "import sys; import cdpo.engine.services.client, cdpo.engine.services.keeper; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
