"""`services:` of devices.yaml: the servers that answer for the models of steps with `backend: openai`."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag

from cdpo.config.params import Count, Params, Positive
from cdpo.config.problems import Problem, YamlPath
from cdpo.config.yaml_reader import Document

#: a name in braces, which is put in its place when the server is started; other braces (JSON) are left alone
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
PLACEHOLDERS = ("port", "model", "name", "dtype")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: keys that only a server has that cdpo starts itself
STARTED = ("server", "python", "options", "processes", "ready_minutes", "restarts")
#: options that cdpo gives a server itself, or that would change what is computed, which only a task may
OWN = {
    "vllm": (
        *("--host", "--port", "--model", "--served-model-name", "--tensor-parallel-size", "--lora-modules", "--dtype"),
        *("--tokenizer", "--quantization", "--generation-config", "--override-generation-config", "--hf-overrides"),
        *("--logprobs-mode", "--trust-remote-code"),
    ),
    "transformers": (
        *("--host", "--port", "--dtype", "--quantization", "--attn-implementation"),
        "--trust-remote-code",
    ),
}


class ServiceParams(Params):
    """A server that cdpo starts for the model of each step (`server`), or one that runs already (`url`)."""

    server: (
        Annotated[
            Annotated[Literal["vllm", "transformers"], Tag("name")]
            | Annotated[list[str], Field(min_length=1), Tag("command")],
            Discriminator(lambda value: "command" if isinstance(value, list) else "name"),
        ]
        | None
    ) = None
    """`vllm`, `transformers`, or a command of your own, in whose words {port}, {model} (a folder), {name} (by which it
    may list the model) and {dtype} (float32, ...) are replaced. The word `python` at its beginning is the interpreter
    of `python:`."""
    python: str | None = None
    """The interpreter that has the server's packages. Default: cdpo's own."""
    options: list[str] = Field(default_factory=list)
    """Handed to the server as they are, after what cdpo says."""
    processes: Count = 1
    """GPUs of one server."""
    ready_minutes: Positive = 10.0
    """Within so long it must answer; loading a model counts, waiting for a GPU does not."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """So many times one that was ready and died, or fell silent, is started again."""
    api: Literal["vllm", "transformers", "openai"] | None = None
    """Whose form of the API a command of your own, or the server at `url`, speaks: vLLM's tells token ids, ... Default:
    OpenAI's."""
    url: str | None = None
    """Where a server answers that somebody else started: `http://HOST:PORT/v1`. It serves one model."""
    model: str | None = None
    """What the server at `url` calls its model. Default: the only one that it lists."""
    api_key: str | None = None
    """Name of the environment variable that holds the key."""
    concurrency: Count = 16
    """Requests of one step at once."""
    timeout_seconds: Positive = 600.0
    """A request may take so long."""
    retries: Annotated[int, Field(ge=0)] = 5
    """So often one that failed is sent again."""


def read_services(
    services: Mapping[str, ServiceParams], document: Document, project: Path
) -> tuple[dict[str, ServiceParams], list[Problem]]:
    """The services with whole paths, relative ones being below `project`, and what is wrong with them."""
    problems = []
    for name, service in services.items():
        for key, message in _wrong(service):
            path: YamlPath = ("services", name) if key is None else ("services", name, key)
            problems.append(document.problem(path, message, at_key=key in STARTED and service.url is not None))
    return {name: _with_paths(service, project) for name, service in services.items()}, problems


def _wrong(service: ServiceParams) -> Iterator[tuple[str | None, str]]:
    """(key, what is wrong with its value) of one service."""
    if service.api_key is not None and not VARIABLE.fullmatch(service.api_key):
        yield "api_key", "should be the name of the environment variable that holds the key, never the key itself"
    if service.url is None:
        if service.server is None:
            yield None, "names no server: write `server: vllm` (or transformers, a command), or `url:` of one that runs"
        else:
            yield from _wrong_server(service, service.server)
        if service.api is not None and isinstance(service.server, str):
            yield "api", f"leave it out: {service.server} speaks its own"
        if service.model is not None:
            yield "model", "belongs to `url`: a server that cdpo starts has the model of its step"
        return
    for key in STARTED:
        if key in service.model_fields_set:
            yield key, "leave it out: `url` names a server that is not cdpo's to start"
    parts = urlsplit(service.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield "url", f"should be like http://HOST:PORT/v1, not {service.url!r}"
    elif parts.username or parts.password:
        yield "url", "keep the key out of it: `api_key` names the environment variable that holds it"


def _wrong_server(service: ServiceParams, server: str | list[str]) -> Iterator[tuple[str, str]]:
    if isinstance(server, list):
        words = [*server, *service.options]
        found = {name for word in words for name in PLACEHOLDER.findall(word)}
        for name in sorted(found.difference(PLACEHOLDERS)):
            known = ", ".join(f"{{{each}}}" for each in PLACEHOLDERS)
            yield "server", f"{{{name}}} stands for nothing: there are {known}"
        for name in ("port", "model"):
            if name not in found:
                yield "server", f"has no {{{name}}}: the server must be told which {name} it is to serve"
        return
    for word in service.options:
        option = word.partition("=")[0].replace("_", "-")
        if option in OWN[server]:
            yield "options", f"{option} is for cdpo to set, or for the task; remove it"


def _with_paths(service: ServiceParams, project: Path) -> ServiceParams:
    python = service.python
    if python is None or "/" not in os.path.expanduser(python):
        return service
    # not resolved: the interpreter of a virtual environment is a link
    return service.model_copy(update={"python": os.path.abspath(project / os.path.expanduser(python))})
