"""The repos of the test Hub: commits, branches, tags, and what is told of their files.

A commit holds its whole tree, path -> entry {sha256, size, oid, lfs, commit}: `oid` is the name that git gives to the
file (of a large one: to its pointer), `commit` the commit that changed it last.
"""

import base64
import re
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import yaml

from tests.hub.hub_messages import Account, Refused
from tests.hub.hub_store import Store, git_oid, lfs_pointer

KINDS = ("models", "datasets", "spaces")
LARGE = (".parquet", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".arrow", ".npy", ".npz", ".gz", ".zip")
#: larger files are large files, whatever they hold
MOST = 5 * 2**20
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)

Tree = dict[str, dict[str, Any]]
Value = dict[str, Any]


class Repo:
    """One repo: `told` is what its file holds {_id, private, gated, created, sdk, branches, tags}.

    Whoever changes one holds the store's lock from before it was found.
    """

    def __init__(self, store: Store, kind: str, namespace: str, name: str, told: Value):
        self.store, self.kind, self.namespace, self.name, self.told = store, kind, namespace, name, told

    @property
    def id(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def prefix(self) -> str:
        """Of its address."""
        return "" if self.kind == "models" else f"{self.kind}/"

    @property
    def file(self) -> str:
        return f"repos/{self.kind}/{self.namespace}/{self.name}.json"

    def save(self) -> None:
        self.store.write_json(self.file, self.told)

    def commit(self, revision: str) -> Value:
        """The commit that a branch, a tag or an id names; Refused if none does."""
        named = self.told["branches"].get(revision) or self.told["tags"].get(revision) or revision
        found = self.store.read_json(f"commits/{named}.json") if re.fullmatch("[0-9a-f]{40}", named) else None
        if not found or found["repo"] != self.told["_id"]:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def history(self, revision: str) -> Iterator[Value]:
        """From this commit back to the first."""
        commit: Value | None = self.commit(revision)
        while commit:
            yield commit
            commit = self.store.read_json(f"commits/{commit['parent']}.json")

    def add_commit(self, branch: str, tree: Tree, title: str, message: str, author: str, *, root: bool = False) -> str:
        """Write a commit and let the branch name it; its id."""
        made = secrets.token_hex(20)
        for entry in tree.values():
            entry.setdefault("commit", made)
        parent = None if root else self.told["branches"].get(branch)
        commit = {"id": made, "repo": self.told["_id"], "parent": parent, "title": title, "message": message}
        self.store.write_json(f"commits/{made}.json", {**commit, "date": now(), "author": author, "tree": tree})
        self.told["branches"][branch] = made
        self.save()
        return made

    def change(self, branch: str, lines: list[Value], author: str) -> str:
        """Do the lines of a commit; its id. Refused, and nothing is changed, where one cannot be done."""
        head = self.told["branches"].get(branch)
        if head is None:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        header = next((line["value"] for line in lines if line["key"] == "header"), None)
        if header is None:
            raise Refused(400, "The commit has no header")
        if header.get("parentCommit") not in (None, head):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree: Tree = self.commit(head)["tree"]
        for line in lines:
            if line["key"] != "header":
                self._do(tree, line["key"], line["value"])
        for path in tree:
            if any(str(folder) in tree for folder in PurePosixPath(path).parents):
                raise Refused(400, f"{path} lies in a file")
        return self.add_commit(branch, tree, header["summary"], header.get("description", ""), author)

    def _do(self, tree: Tree, key: str, value: Value) -> None:
        path = value["path"].rstrip("/") if key == "deletedFolder" else value["path"]
        if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
            raise Refused(400, f"Invalid path {path!r}")
        if key == "file":
            if value.get("encoding") != "base64":
                raise Refused(400, f"Unknown encoding of {path}")
            data = base64.b64decode(value["content"])
            _put(
                tree, path, {"sha256": self.store.put_blob(data), "size": len(data), "oid": git_oid(data), "lfs": False}
            )
        elif key == "lfsFile":
            _put(tree, path, self._large(path, value))
        elif key == "deletedFile":
            if path not in tree:
                raise Refused(404, f"{path} does not exist", "EntryNotFound")
            del tree[path]
        elif key == "deletedFolder":
            within = [each for each in tree if each.startswith(path + "/")]
            if not within:
                raise Refused(404, f"{path} does not exist", "EntryNotFound")
            for each in within:
                del tree[each]
        else:
            raise Refused(400, f"Unknown line {key!r}")

    def _large(self, path: str, value: Value) -> Value:
        blob = self.store.blob(value["oid"])
        if value.get("algo") != "sha256" or not blob.exists():
            raise Refused(400, f"LFS object {value['oid']} of {path} was not uploaded")
        size = blob.stat().st_size
        if value.get("size", size) != size:
            raise Refused(400, f"LFS object {value['oid']} of {path} has {size} bytes")
        return {"sha256": value["oid"], "size": size, "oid": git_oid(lfs_pointer(value["oid"], size)), "lfs": True}

    def info(self, revision: str, blobs: bool = False) -> Value:
        """What the clients call ModelInfo and the like."""
        commit = self.commit(revision)
        siblings = [{"rfilename": path, **(_blob(entry) if blobs else {})} for path, entry in commit["tree"].items()]
        card = self._card(commit["tree"])
        told = {"_id": self.told["_id"], "id": self.id, "author": self.namespace, "sha": commit["id"]}
        told |= {"private": self.told["private"], "gated": self.told["gated"], "disabled": False}
        told |= {"lastModified": commit["date"], "createdAt": self.told["created"], "downloads": 0, "likes": 0}
        tags = card.get("tags")
        told |= {"tags": tags if isinstance(tags, list) else [], "cardData": card, "siblings": siblings}
        if self.kind == "models":
            told["modelId"] = self.id
        if self.kind == "spaces":
            told["sdk"] = self.told["sdk"]
        return told

    def _card(self, tree: Tree) -> Value:
        if "README.md" not in tree:
            return {}
        text = self.store.blob(tree["README.md"]["sha256"]).read_text(encoding="utf-8", errors="replace")
        try:
            return front_matter(text)
        except ValueError:
            return {}

    def refs(self) -> Value:
        def listed(what: str, of: dict[str, str]) -> list[Value]:
            return [{"name": name, "ref": f"refs/{what}/{name}", "targetCommit": sha} for name, sha in of.items()]

        branches, tags = listed("heads", self.told["branches"]), listed("tags", self.told["tags"])
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    def entries(self, revision: str, chosen: Callable[[str], bool], expand: bool) -> list[Value]:
        """What is told of the chosen files and folders of a revision, by path."""
        tree: Tree = self.commit(revision)["tree"]
        found = {path: {"type": "file", "path": path, **_entry(entry)} for path, entry in tree.items()}
        last = {path: [entry["commit"]] for path, entry in tree.items()}
        for path, entry in tree.items():
            for folder in map(str, list(PurePosixPath(path).parents)[:-1]):
                oid = git_oid(f"{folder} {entry['oid']}".encode())
                found.setdefault(folder, {"type": "directory", "path": folder, "size": 0, "oid": oid})
                last.setdefault(folder, []).append(entry["commit"])
        listed = [found[path] for path in sorted(found) if chosen(path)]
        if expand:
            for each in listed:
                each["lastCommit"] = self._latest(last[each["path"]])
        return listed

    def _latest(self, ids: list[str]) -> Value:
        commits = [self.store.read_json(f"commits/{each}.json") for each in ids]
        latest = max(commits, key=lambda commit: commit["date"])
        return {name: latest[name] for name in ("id", "title", "date")}


class Repos:
    """All of them, as an account sees them."""

    def __init__(self, store: Store):
        self.store = store

    def find(self, kind: str, namespace: str, name: str, account: Account | None) -> Repo:
        """Refused as missing also where it is private and not the account's."""
        told = None
        if re.fullmatch(r"[\w.-]+", namespace) and re.fullmatch(r"[\w.-]+", name):
            told = self.store.read_json(f"repos/{kind}/{namespace}/{name}.json")
        if not told or (told["private"] and not (account and account.may_see(namespace))):
            raise Refused(404, "Repository not found", "RepoNotFound")
        return Repo(self.store, kind, namespace, name, told)

    def writable(self, kind: str, namespace: str, name: str, account: Account | None) -> Repo:
        """The same, of one that the account may change."""
        repo = self.find(kind, namespace, name, account)
        allow(account, namespace)
        return repo

    def create(self, kind: str, namespace: str, name: str, account: Account | None, asked: Value, base: str) -> Repo:
        """Refused with the status 409 where it exists."""
        allow(account, namespace)
        assert account
        if not re.fullmatch(r"[\w.-]{1,96}", name) or name in (".", ".."):
            raise Refused(400, f"Invalid name {name!r}")
        told: Value = {"_id": secrets.token_hex(12), "private": asked.get("visibility") == "private", "gated": False}
        told |= {"created": now(), "sdk": asked.get("sdk"), "branches": {}, "tags": {}}
        repo = Repo(self.store, kind, namespace, name, told)
        if self.store.read_json(repo.file):
            # the clients take the address out of the refusal
            raise Refused(409, f"You already created this {kind[:-1]} repo", url=f"{base}/{repo.prefix}{repo.id}")
        data = ATTRIBUTES.encode()
        entry = {"sha256": self.store.put_blob(data), "size": len(data), "oid": git_oid(data), "lfs": False}
        repo.add_commit("main", {".gitattributes": entry}, "initial commit", "", account.name)
        return repo

    def move(self, kind: str, old: str, new: str, account: Account | None) -> None:
        (before, called), (namespace, name) = old.split("/"), new.split("/")
        repo = self.writable(kind, before, called, account)
        allow(account, namespace)
        if not re.fullmatch(r"[\w.-]{1,96}", name):
            raise Refused(400, f"Invalid name {name!r}")
        moved = Repo(self.store, kind, namespace, name, repo.told)
        if self.store.read_json(moved.file):
            raise Refused(409, f"{new} exists")
        (self.store.folder / moved.file).parent.mkdir(parents=True, exist_ok=True)
        (self.store.folder / repo.file).rename(self.store.folder / moved.file)

    def all(self, kind: str, account: Account | None) -> Iterator[Repo]:
        """Those that the account may see, by name."""
        for path in sorted((self.store.folder / "repos" / kind).glob("*/[!.]*.json")):
            try:
                yield self.find(kind, path.parent.name, path.name.removesuffix(".json"), account)
            except Refused:
                continue


def allow(account: Account | None, namespace: str) -> None:
    """Refuse who may not write there."""
    if account is None:
        raise Refused(401, "Invalid username or password.")
    if not account.may_write(namespace):
        raise Refused(403, f"You don't have the rights to write under the namespace {namespace!r}")


def upload_mode(path: str, sample: bytes, size: int) -> str:
    """As git's attributes and the Hub's limits say: lfs or regular."""
    if size == 0:
        return "regular"
    return "lfs" if path.lower().endswith(LARGE) or size > MOST or b"\0" in sample else "regular"


def front_matter(text: str) -> Value:
    """The metadata of a card; ValueError if they are no YAML table."""
    found = re.match(r"---\r?\n(.*?)\r?\n?---", text, re.DOTALL)
    try:
        told = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    if told is not None and not isinstance(told, dict):
        raise ValueError("metadata must be a table")
    return told or {}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _put(tree: Tree, path: str, entry: Value) -> None:
    """Add a file; one with the bytes that it had stays as it was."""
    if path not in tree or tree[path]["sha256"] != entry["sha256"]:
        tree[path] = entry


def _entry(entry: Value) -> Value:
    told = {"size": entry["size"], "oid": entry["oid"]}
    if entry["lfs"]:
        pointer = len(lfs_pointer(entry["sha256"], entry["size"]))
        told["lfs"] = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": pointer}
    return told


def _blob(entry: Value) -> Value:
    told = {"size": entry["size"], "blobId": entry["oid"]}
    if entry["lfs"]:
        pointer = len(lfs_pointer(entry["sha256"], entry["size"]))
        told["lfs"] = {"sha256": entry["sha256"], "size": entry["size"], "pointerSize": pointer}
    return told
