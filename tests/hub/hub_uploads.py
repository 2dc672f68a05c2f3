"""Large files on their way into the test Hub: git-lfs's batch, one PUT or parts of it, and the check afterwards."""

import hashlib
import math
import shutil
from typing import Any

from tests.hub.hub_messages import Answer, Refused, Request
from tests.hub.hub_repos import Repos
from tests.hub.hub_store import Store


class Uploads:
    """Files of more than `part` bytes are asked for in parts of that size."""

    def __init__(self, store: Store, repos: Repos, part: int):
        self.store, self.repos, self.part = store, repos, part

    def answer(self, request: Request) -> Answer:
        match [request.verb, *request.segments]:
            case ["POST", *prefix, namespace, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                kind = prefix[0] if prefix else "models"
                self.repos.writable(kind, namespace, name.removesuffix(".git"), request.account)
                asked = request.json()
                objects = [self._object(f"http://{request.header('host')}", each) for each in asked["objects"]]
                parts = any(
                    "chunk_size" in each.get("actions", {}).get("upload", {}).get("header", {}) for each in objects
                )
                return Answer({"transfer": "multipart" if parts else "basic", "objects": objects})
            # these have no token, as the signed addresses of a store: only bytes of the given sha256 are taken
            case ["PUT", "lfs", sha]:
                self._keep(sha, request.body)
                return Answer(headers={"ETag": f'"{sha}"'}, body=b"")
            case ["PUT", "lfs", sha, number]:
                self.store.blob(sha)
                self.store.write(f"parts/{sha}/{int(number)}", request.body)
                return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'}, body=b"")
            case ["POST", "lfs", sha]:
                self._join(sha, request.json()["parts"])
                return Answer({})
            case ["POST", "lfs", sha, "verify"]:
                blob = self.store.blob(sha)
                if not blob.exists() or blob.stat().st_size != request.json()["size"]:
                    raise Refused(404, f"LFS object {sha} was not uploaded")
                return Answer({})
        raise Refused(404, "Not found")

    def _object(self, base: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What is to be done about one object: nothing if it is here."""
        sha, size = asked["oid"], asked["size"]
        told = {"oid": sha, "size": size}
        if self.store.blob(sha).exists():
            return told
        upload: dict[str, Any] = {"href": f"{base}/lfs/{sha}"}
        if size > self.part:
            count = math.ceil(size / self.part)
            numbered = {str(number): f"{base}/lfs/{sha}/{number}" for number in range(1, count + 1)}
            upload["header"] = {"chunk_size": str(self.part), **numbered}
        return {**told, "actions": {"upload": upload, "verify": {"href": f"{base}/lfs/{sha}/verify"}}}

    def _keep(self, sha: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != sha:
            raise Refused(400, f"The bytes are not those of {sha}")
        self.store.put_blob(data)

    def _join(self, sha: str, parts: list[dict[str, Any]]) -> None:
        if self.store.blob(sha).exists():
            return
        folder = self.store.folder / "parts" / sha
        data = b""
        for part in parts:
            piece = folder / str(part["partNumber"])
            if not piece.exists() or f'"{hashlib.md5(piece.read_bytes()).hexdigest()}"' != part["etag"]:
                raise Refused(400, f"Part {part['partNumber']} was not uploaded")
            data += piece.read_bytes()
        self._keep(sha, data)
        shutil.rmtree(folder, ignore_errors=True)
