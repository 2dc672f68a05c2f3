"""A small server of OpenAI's completions over a real tiny model, which can be told to misbehave.

    python openai_server.py --port 8000 --model FOLDER        (what a service of the engine starts)

It answers like one of the three kinds of server that cdpo tells apart, computing with cdpo's transformers backend.
"""

import argparse
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from cdpo.config.params import SamplingParams
from cdpo.generate.backend import Item
from cdpo.generate.transformers_backend import generate

#: what to do in place of answering: (number of the request, its body) -> (status, headers, body), "close", "cut",
#: "hang", or None to answer
Trouble = Callable[[int, dict[str, Any]], Any]


class OpenAIServer(ThreadingHTTPServer):
    """Use as a context manager; `url` ends in /v1."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, model: Any, tokenizer: Any, *, kind: str = "vllm", port: int = 0, trouble: Trouble | None = None
    ):
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.tokenizer, self.kind, self.trouble = model, tokenizer, kind, trouble
        self.lock = threading.Lock()
        #: bodies of all requests, answered or not, and how many were under way at once at most
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        #: (path, headers) of all requests
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.under_way = self.most = 0
        self.end = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> "OpenAIServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end.set()
        self.shutdown()
        self.server_close()
        # a thread that is within torch when the interpreter ends aborts the process
        limit = time.monotonic() + 30
        while self.under_way and time.monotonic() < limit:
            time.sleep(0.01)

    def handle_error(self, *_: object) -> None:
        """Clients leave as they please."""

    def answer(self, body: dict[str, Any], chat: bool) -> dict[str, Any]:
        if chat:
            text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
            prompt = self.tokenizer(text, add_special_tokens=False).input_ids
        elif isinstance(body["prompt"], str):
            prompt = self.tokenizer(body["prompt"]).input_ids
        else:
            prompt = body["prompt"]
        settings = json.loads(body.get("generation_config", "{}"))
        most = body.get("max_tokens") or body.get("max_completion_tokens") or settings["max_new_tokens"]
        greedy = not settings["do_sample"] if settings else body["temperature"] == 0
        drawn = settings or body
        sampling = SamplingParams(
            max_new_tokens=most,
            do_sample=not greedy,
            **({} if greedy else {name: drawn[name] for name in ("temperature", "top_k", "top_p") if name in drawn}),
        )
        # as OpenAI's, a server that is told no token ids ends where its own end token or a stop string comes
        ends = body.get("stop_token_ids") or settings.get("eos_token_id") or self._ends(body)
        with self.lock:
            ((_, made),) = generate(
                self.model, [Item(prompt, body.get("seed", 0))], sampling, end_ids=ends, pad_id=0, batch_size=1
            )
        content = made.token_ids[:-1] if made.finish_reason == "stop" else made.token_ids
        text = self.tokenizer.decode(content, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": 0, "finish_reason": made.finish_reason, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if self.kind != "transformers" and body.get("logprobs") is not None:
            each = made.logprobs
            content_of = [{"token": "?", "logprob": value, "top_logprobs": []} for value in each]
            choice["logprobs"] = {"content": content_of} if chat else {"token_logprobs": each}
        if self.kind == "vllm" and body.get("return_token_ids"):
            choice["token_ids"] = made.token_ids
        used = {"prompt_tokens": len(prompt), "completion_tokens": len(made.token_ids)}
        used["total_tokens"] = sum(used.values())
        kind = "chat.completion" if chat else "text_completion"
        return {"id": "x", "object": kind, "created": 1, "model": body["model"], "choices": [choice], "usage": used}

    def _ends(self, body: dict[str, Any]) -> list[int]:
        known = self.tokenizer.get_vocab()
        return [self.tokenizer.eos_token_id, *(known[each] for each in body.get("stop", []))]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OpenAIServer

    def do_GET(self) -> None:
        self._note()
        if self.path == "/health":
            self._send(200, {})
        elif self.path == "/v1/models":
            listed = [{"id": self.server.model.config.name_or_path, "object": "model"}]
            self._send(200, {"object": "list", "data": listed})
        else:
            self._send(404, {"error": {"message": "no such page"}})

    def _note(self) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))

    def do_POST(self) -> None:
        self._note()
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            server.bodies.append(body)
            server.times.append(time.monotonic())
            number = len(server.bodies) - 1
            server.under_way += 1
            server.most = max(server.most, server.under_way)
        try:
            self._answer(number, body)
        finally:
            with server.lock:
                server.under_way -= 1

    def _answer(self, number: int, body: dict[str, Any]) -> None:
        trouble = self.server.trouble(number, body) if self.server.trouble else None
        if trouble == "hang":
            self.server.end.wait(60)
        if trouble in ("close", "hang"):
            # a reset, not a polite end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        chat = self.path.endswith("/chat/completions")
        status, headers, answer = trouble if isinstance(trouble, tuple) else (200, {}, self.server.answer(body, chat))
        self._send(status, answer, headers, cut=trouble == "cut")

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        sent = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent[: len(sent) // 2] if cut else sent)
        if cut:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def main() -> None:
    from pathlib import Path

    from cdpo.models import load_policy, load_tokenizer

    given = argparse.ArgumentParser()
    given.add_argument("--port", type=int, required=True)
    given.add_argument("--model", type=Path, required=True)
    given.add_argument("--kind", default="vllm")
    asked = given.parse_args()
    torch.set_num_threads(1)
    model = load_policy(asked.model, device=torch.device("cpu"))
    with OpenAIServer(model, load_tokenizer(asked.model), kind=asked.kind, port=asked.port):
        threading.Event().wait()


if __name__ == "__main__":
    main()
