"""Repositories put into a test Hub without a client, and the tiny models and files that lie in them."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hub.hub_messages import Account
from tests.hub.hub_server import Hub


def fill(hub: Hub, kind: str, id_: str, files: Mapping[str, bytes | str], *, branch: str = "main", **asked: Any) -> str:
    """A commit of these files on a branch of a repository ("models", "datasets"), made where it is not there; its id.

    `asked`: what it is created with, as `visibility="private"`.
    """
    namespace, name = id_.split("/")
    owner = Account(namespace)
    repos = hub.routes.repos
    with hub.routes.store.lock:
        if hub.routes.store.read_json(f"repos/{kind}/{namespace}/{name}.json") is None:
            repos.create(kind, namespace, name, owner, asked, hub.url)
        repo = repos.find(kind, namespace, name, owner)
        if branch not in repo.told["branches"]:
            repo.told["branches"][branch] = repo.told["branches"]["main"]
        lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "files"}}]
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            value = {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}
            lines.append({"key": "file", "value": value})
        return repo.change(branch, lines, namespace)


def folder_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
