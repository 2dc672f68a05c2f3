"""A Hub for tests: what huggingface_hub 2.4, datasets 5.2, transformers and peft ask of huggingface.co, over a folder.

    with Hub(folder) as hub:                                    # a thread of this process; hub.url, hub.requests
    python -m tests.hub.hub_server --folder DIR --port 8000     # a process of its own, see hub_process.py

The folder holds all of its state, as hub_store.py says; a server that was killed goes on over it. Beside the state lie
requests.jsonl, every request that ever came, and, if a test wrote it, faults.json (hub_faults.py).

What passes here need not pass at huggingface.co. In particular:
- The clients are told not to use Xet (HF_HUB_DISABLE_XET=1), which they do use there: large files come here by git-lfs,
  and upload_folder makes one commit here where it may make several there. Xet is not covered at all.
- Not known here: pull requests, gated repos (the setting is kept, nothing is gated), redirects of moved repos, short
  commit ids, .gitignore, quotas, the dataset viewer, and all of Spaces but their files.
- Two commits at once without a parentCommit both land here; there, one may be refused (409 or 412: told as a fault).
- Ids of commits are random, they are not git's; those of files are.
"""

import argparse
import errno
import json
import os
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.hub.hub_faults import Fault, Faults
from tests.hub.hub_messages import Account, Answer, Refused, Request
from tests.hub.hub_routes import Routes
from tests.hub.hub_store import ERRORS, Store

#: the tokens of a Hub that is told no accounts
WRITER, READER, OTHER = "hf_testwriter", "hf_testreader", "hf_testother"
ACCOUNTS = {
    WRITER: Account("ada", ("lab",)),
    READER: Account("ada", ("lab",), "read"),
    OTHER: Account("eve"),
}


class Hub(ThreadingHTTPServer):
    """Use as a context manager. Accounts that are given are kept in the folder, for the next server over it.

    `page`: entries of a page of a list; `part`: files of more bytes are uploaded in parts of so many.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        accounts: dict[str, Account] | None = None,
        page: int = 1000,
        part: int = 64 * 2**20,
    ):
        super().__init__(("127.0.0.1", port), Handler)
        self.folder = folder
        store = Store(folder)
        if accounts:
            keep_accounts(folder, accounts)
        kept = store.read_json("accounts.json") or {}
        known = {token: Account(each["name"], tuple(each["orgs"]), each["role"]) for token, each in kept.items()}
        self.routes = Routes(store, known or ACCOUNTS, page=page, part=part)
        self.faults = Faults(folder)
        #: all that came to this server, answered or not
        self.requests: list[Request] = []
        #: tracebacks of mistakes of the server itself, which it answers by 500; also in FOLDER/errors.txt
        self.errors: list[str] = []
        self.end = threading.Event()
        self._record = _Record(folder / "requests.jsonl")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def environment(self, cache: Path, token: str | None) -> dict[str, str]:
        return environment(self.url, cache, token)

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.shutdown()
        self.server_close()
        self._record.close()

    def handle_error(self, *_: object) -> None:
        """Clients leave as they please."""

    def record(self, request: Request) -> None:
        self.requests.append(request)
        self._record.add(request)

    def answer(self, request: Request, fault: Fault | None) -> Answer:
        """What the request is answered by, whatever happens."""
        if fault and fault.do == "status":
            return Refused(fault.status, fault.message, headers=fault.headers).answer
        self.routes.store.trouble.full = bool(fault and fault.do == "disk-full")
        try:
            return self.routes.answer(request)
        except Refused as refused:
            return refused.answer
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                return Refused(fault.status if fault else 507, "Insufficient storage").answer
            self.errors.append(traceback.format_exc())
            with (self.folder / ERRORS).open("a", encoding="utf-8") as file:
                file.write(self.errors[-1])
            return Refused(500, repr(error)).answer


class _Record:
    """The file of all requests, one line each; a line that a kill has torn is ended."""

    def __init__(self, path: Path):
        self.lock = threading.Lock()
        self.file = path.open("a+b", buffering=0)
        if size := self.file.seek(0, os.SEEK_END):
            self.file.seek(size - 1)
            if self.file.read(1) != b"\n":
                self.file.write(b"\n")

    def add(self, request: Request) -> None:
        line = memoryview(request.to_line())
        with self.lock:
            while line:
                line = line[self.file.write(line) :]

    def close(self) -> None:
        with self.lock:
            self.file.close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def _serve(self) -> None:
        hub = self.server
        request = Request(self.command, self.path, self.headers.items())
        fault = hub.faults.take(request.method, request.path)
        do = fault.do if fault else ""
        whole = self._read(request, half=do == "reset-upload")
        # before it is answered: who was killed meanwhile has got it nevertheless
        hub.record(request)
        if not whole:
            self._reset()
            return
        if fault and do == "hang":
            hub.end.wait(fault.seconds)
        answer = hub.answer(request, fault)
        if fault and do == "hang-after":
            hub.end.wait(fault.seconds)
        if do == "lose-answer":
            self._reset()
            return
        request.status = answer.status
        self._send(answer, cut=do == "cut-answer")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _read(self, request: Request, half: bool) -> bool:
        """Read the body into the request; whether it came, and was wanted, wholly."""
        told = self.headers["content-length"]
        most = int(told) // 2 if half and told else None
        try:
            for piece in self._pieces(int(told or 0)):
                request.body += piece
                if half and (most is None or len(request.body) >= most):
                    request.body = request.body[:most]
                    return False
        except (OSError, ValueError):
            return False  # the client has gone
        return not half

    def _pieces(self, size: int) -> Iterator[bytes]:
        """Of the body, which may come in chunks; OSError if it ends too early."""
        chunked = "chunked" in (self.headers["transfer-encoding"] or "").lower()
        while chunked:
            length = int(self.rfile.readline().split(b";")[0], 16)
            yield self._exactly(length)
            self.rfile.readline()
            chunked = length > 0
        while size > 0:
            piece = self._exactly(min(size, 2**16))
            size -= len(piece)
            yield piece

    def _exactly(self, size: int) -> bytes:
        piece = self.rfile.read(size)
        if len(piece) < size:
            raise ConnectionError("the body ended too early")
        return piece

    def _reset(self) -> None:
        """End the connection by a reset, not politely."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, answer: Answer, cut: bool) -> None:
        content = answer.content()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def keep_accounts(folder: Path, accounts: dict[str, Account]) -> None:
    """For the servers that will be started over this folder: token -> whose it is."""
    Store(folder).write_json("accounts.json", {token: vars(each) for token, each in accounts.items()})


def environment(url: str, cache: Path, token: str | None) -> dict[str, str]:
    """Of a process that shall know no Hub but this one: its clients read all this when they are imported."""
    ours = ("HF_", "HUGGING", "TRANSFORMERS_", "DISABLE_TELEMETRY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    told = {"HF_ENDPOINT": url, "HF_HOME": str(cache / "huggingface"), "HF_HUB_DISABLE_XET": "1"}
    told |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    told |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **({"HF_TOKEN": token} if token else {})}
    return {**kept, **told}


def main() -> None:
    given = argparse.ArgumentParser()
    given.add_argument("--folder", type=Path, required=True)
    given.add_argument("--port", type=int, default=0)
    given.add_argument("--page", type=int, default=1000)
    given.add_argument("--part", type=int, default=64 * 2**20)
    given.add_argument("--while-stdin", action="store_true", help="end when the standard input does")
    asked = given.parse_args()
    with Hub(asked.folder, port=asked.port, page=asked.page, part=asked.part) as hub:
        print(json.dumps({"url": hub.url, "pid": os.getpid()}), flush=True)
        if asked.while_stdin:
            sys.stdin.read()
        else:
            threading.Event().wait()


if __name__ == "__main__":
    main()
