"""What goes through the test Hub: requests as they came, answers, refusals, and the accounts behind the tokens."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote


@dataclass(frozen=True)
class Account:
    """Whose token it is: it may see the private repos of `name` and `orgs`, and change theirs if its role is write."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"

    def may_see(self, namespace: str) -> bool:
        return namespace in (self.name, *self.orgs)

    def may_write(self, namespace: str) -> bool:
        return self.role == "write" and self.may_see(namespace)


@dataclass
class Request:
    """A request as it came; `body` is what came of it."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    #: of the answer; None until it is sent, and always None in requests.jsonl
    status: int | None = None
    account: Account | None = field(default=None, repr=False)

    def header(self, name: str) -> str | None:
        return next((value for given, value in self.headers if given.lower() == name.lower()), None)

    @property
    def verb(self) -> str:
        """What is to be done: HEAD is a GET whose answer has no body."""
        return "GET" if self.method == "HEAD" else self.method

    @property
    def segments(self) -> list[str]:
        """Of the path, each unquoted by itself: a revision may hold a slash."""
        return [unquote(each) for each in self.path.split("?")[0].split("/")[1:]]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.path.partition("?")[2])

    def asked(self, name: str) -> str | None:
        """The first value of a parameter of the query."""
        return self.query.get(name, [None])[0]

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def lines(self) -> list[dict[str, Any]]:
        """The lines of a commit."""
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]

    def everything(self) -> bytes:
        """All that was sent, to be searched: path as it came and unquoted, headers, body, and what a commit or a
        preupload holds in base64. What a compressed file holds is not found so."""
        told = [self.path, unquote(self.path), *(f"{name}: {value}" for name, value in self.headers)]
        return b"\n".join([*(each.encode() for each in told), self.body, *self._decoded()])

    def _decoded(self) -> Iterator[bytes]:
        try:
            if "/preupload/" in self.path:
                yield from (base64.b64decode(each["sample"]) for each in self.json()["files"])
            if "/commit/" in self.path:
                values = (line["value"] for line in self.lines())
                yield from (base64.b64decode(each["content"]) for each in values if "content" in each)
        except (ValueError, KeyError):
            pass  # cut off on its way

    def to_line(self) -> bytes:
        kept = {"method": self.method, "path": self.path, "headers": self.headers}
        return json.dumps({**kept, "body": base64.b64encode(self.body).decode()}).encode() + b"\n"


def read_requests(folder: Path) -> list[Request]:
    """All requests that a Hub over this folder ever got, in order; a line that a kill has torn is left out."""
    found = []
    for line in (folder / "requests.jsonl").read_bytes().splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        headers = [(name, value) for name, value in told["headers"]]
        found.append(Request(told["method"], told["path"], headers, base64.b64decode(told["body"])))
    return found


@dataclass
class Answer:
    """`value` is sent as JSON, unless `body` is given."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None

    def content(self) -> bytes:
        return json.dumps(self.value).encode() if self.body is None else self.body


class Refused(Exception):
    """Answered by this status; `code` is what the clients tell missing repos, revisions and files apart by."""

    def __init__(
        self, status: int, message: str, code: str = "", *, headers: dict[str, str] | None = None, **told: Any
    ):
        super().__init__(message)
        named = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = Answer({"error": message, **told}, status, {**named, **(headers or {})})
