"""A server on this machine that speaks what wandb-core says to wandb's: GraphQL, the file stream, files.

It remembers runs as wandb's server does: the lines of a run's history by their number, so that a run that is resumed
goes on after the last one and lines that are sent again replace themselves.
"""

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef" * 2 + "recogni5"
FILE = "wandb-history.jsonl"


class WandbServer:
    """`runs` by id: what was upserted, the lines of its `history`, and its exit code (None: it has not ended)."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        #: of every request: its first line, its headers but the authorisation, its body
        self.requests: list[str] = []
        self.authorised: set[str] = set()
        #: requests whose path holds this are answered with an error, or never
        self.broken: str | None = None
        self.silent: str | None = None
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                server._answer(self)

            do_POST = do_PUT = do_GET

        self.http = _Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        headers = dict(request.headers)
        secret = headers.pop("Authorization", "")
        self.authorised.add(base64.b64decode(secret.removeprefix("Basic ")).decode() if secret else "")
        self.requests.append(f"{request.requestline}\n{headers}\n{body.decode(errors='replace')}")
        if self.silent is not None and self.silent in request.path:
            self.over.wait()
            return
        broken = self.broken is not None and self.broken in request.path
        code, value = (500, {"error": "broken"}) if broken else (200, self._reply(request.path, body))
        sent = json.dumps(value).encode()
        with contextlib.suppress(OSError):
            request.send_response(code)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(sent)))
            request.end_headers()
            request.wfile.write(sent)

    def _reply(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/graphql":
            asked = json.loads(body)
            return {"data": self._graphql(asked["query"], asked.get("variables") or {})}
        if found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            self._stream(self.runs[found[1]], json.loads(body))
        return {}

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket" in query:
            return {"upsertBucket": self._upsert(given)}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if "RunResumeStatus" in query:
            return {"model": {**_project(given["project"]), "bucket": self._kept(given["name"])}}
        if "viewer" in query:
            me = {"id": "v", "entity": "team", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": {**me, "teams": {"edges": []}}}
        return {"serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}}

    def _upsert(self, given: dict[str, Any]) -> dict[str, Any]:
        inserted = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], {"history": {}, "exit": None})
        run |= {name: value for name, value in given.items() if value is not None} | {"exit": None}
        bucket = {"id": "b", "projectId": 1, "name": given["name"], "displayName": given["displayName"]}
        config = run.get("config") or "{}"
        bucket |= {"description": "", "config": config, "sweepName": None, "project": _project(given["project"])}
        bucket |= {"historyLineCount": len(run["history"])}
        return {"bucket": bucket, "inserted": inserted}

    def _kept(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        lines = [json.loads(each) for _, each in sorted(run["history"].items())]
        last = lines[-1] if lines else {}
        return {
            "id": "b",
            "name": name,
            "projectId": 1,
            "displayName": run["displayName"],
            "summaryMetrics": json.dumps(last),
            "logLineCount": 0,
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(last)] if lines else []),
            "eventsTail": "[]",
            "config": run.get("config") or "{}",
            "tags": [],
            "wandbConfig": json.dumps({"t": {"5": "0"}}),
        }

    def _stream(self, run: dict[str, Any], said: dict[str, Any]) -> None:
        for name, part in (said.get("files") or {}).items():
            if name == FILE:
                run["history"] |= dict(enumerate(part["content"], part["offset"]))
        if said.get("complete"):
            run["exit"] = said["exitcode"]

    def history(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.runs[run]["history"].items())]

    def config(self, run: str) -> dict[str, Any]:
        found = json.loads(self.runs[run]["config"])
        return {name: each["value"] for name, each in found.items() if name != "_wandb"}


def _project(name: str) -> dict[str, Any]:
    return {"id": "p", "name": name, "entity": {"id": "e", "name": "team"}}


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """wandb-core drops connections when it ends."""


@contextlib.contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()
