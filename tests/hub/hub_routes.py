"""What the test Hub answers to which request: all but the collections."""

import re
from base64 import b64decode
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from tests.hub.hub_collections import Collections
from tests.hub.hub_messages import Account, Answer, Refused, Request
from tests.hub.hub_repos import KINDS, Repo, Repos, front_matter, upload_mode
from tests.hub.hub_store import Store
from tests.hub.hub_uploads import Uploads

Value = dict[str, Any]


class Routes:
    """`page` is how many entries a page of a list has; with `expand`, 50 at most."""

    def __init__(self, store: Store, accounts: dict[str, Account], *, page: int, part: int):
        self.store, self.accounts, self.page = store, accounts, page
        self.repos = Repos(store)
        self.uploads = Uploads(store, self.repos, part)
        self.collections = Collections(store, self.repos)

    def answer(self, request: Request) -> Answer:
        """Refused where it cannot be done."""
        request.account = self._account(request)
        match [request.verb, *request.segments]:
            case ["GET", "api", "whoami-v2"]:
                return Answer(_whoami(request.account))
            case ["POST", "api", "validate-yaml"]:
                return _validated(request.json())
            case [_, "api", "repos", what]:
                return self._repos(request, what)
            case [_, "api", "collections", *_]:
                return self.collections.answer(request)
            case ["GET", "api", kind] if kind in KINDS:
                return self._listed(request, kind)
            case ["GET", "api", kind, namespace, name, *rest] if kind in KINDS:
                return self._read(request, self.repos.find(kind, namespace, name, request.account), rest)
            case ["POST", "api", kind, namespace, name, "paths-info", revision] if kind in KINDS:
                found = self.repos.find(kind, namespace, name, request.account)
                return _paths_info(found, revision, request.body)
            case [_, "api", kind, namespace, name, *rest] if kind in KINDS:
                # whoever changes a repo keeps all others away until that is done
                with self.store.lock:
                    return self._change(request, self.repos.writable(kind, namespace, name, request.account), rest)
            case ["GET", kind, namespace, name, "resolve", revision, *path] if kind in KINDS:
                return self._resolve(request, self.repos.find(kind, namespace, name, request.account), revision, path)
            case ["GET", namespace, name, "resolve", revision, *path]:
                found = self.repos.find("models", namespace, name, request.account)
                return self._resolve(request, found, revision, path)
            case ["GET", "api", kind, _] if kind in KINDS:
                raise Refused(404, "Repository not found", "RepoNotFound")  # of no namespace
            case ["GET", _, "resolve", *_]:
                raise Refused(404, "Repository not found", "RepoNotFound")
        return self.uploads.answer(request)

    def _account(self, request: Request) -> Account | None:
        told = request.header("authorization")
        if told is None:
            return None
        account = self.accounts.get(told.removeprefix("Bearer "))
        if account is None:
            # in just these words: the client tells a wrong token from a missing repo by them
            raise Refused(401, "Invalid credentials in Authorization header")
        return account

    def _repos(self, request: Request, what: str) -> Answer:
        asked, account = request.json(), request.account
        kind = (asked.get("type") or "model") + "s"
        if kind not in KINDS:
            raise Refused(400, f"Invalid repo type {kind[:-1]!r}")
        with self.store.lock:
            if (request.method, what) == ("POST", "move"):
                self.repos.move(kind, asked["fromRepo"], asked["toRepo"], account)
                self.collections.moved(kind, asked["fromRepo"], asked["toRepo"])
                return Answer({})
            namespace = asked.get("organization") or (account.name if account else "")
            if (request.method, what) == ("POST", "create"):
                repo = self.repos.create(kind, namespace, asked["name"], account, asked, _base(request))
                return Answer(
                    {"url": f"{_base(request)}/{repo.prefix}{repo.id}", "name": repo.id, "id": repo.told["_id"]}
                )
            if (request.method, what) == ("DELETE", "delete"):
                self.store.remove(self.repos.writable(kind, namespace, asked["name"], account).file)
                return Answer({})
        raise Refused(404, "Not found")

    def _listed(self, request: Request, kind: str) -> Answer:
        author, words = request.asked("author"), request.query.get("search", [])
        tags = set(request.query.get("filter", []))
        found = []
        for repo in self.repos.all(kind, request.account):
            if (author and repo.namespace != author) or any(word.lower() not in repo.id.lower() for word in words):
                continue
            told = repo.info("main")
            if tags <= set(told["tags"]):
                found.append(told)
        return self._paged(request, found, min(self.page, int(request.asked("limit") or self.page)))

    def _read(self, request: Request, repo: Repo, rest: list[str]) -> Answer:
        expand = _true(request.asked("expand"))
        match rest:
            case []:
                return Answer(repo.info("main", _true(request.asked("blobs"))))
            case ["revision", revision]:
                return Answer(repo.info(revision, _true(request.asked("blobs"))))
            case ["refs"]:
                return Answer(repo.refs())
            case ["commits", revision]:
                return self._paged(request, [_told(commit) for commit in repo.history(revision)], self.page)
            case ["tree", revision, *path]:
                listed = _tree(repo, revision, "/".join(path).strip("/"), _true(request.asked("recursive")), expand)
                return self._paged(request, listed, min(50, self.page) if expand else self.page)
            case ["auth-check"]:
                return Answer({})
            case ["auth-check", "write"]:
                self.repos.writable(repo.kind, repo.namespace, repo.name, request.account)
                return Answer({})
        raise Refused(404, "Not found")

    def _change(self, request: Request, repo: Repo, rest: list[str]) -> Answer:
        assert request.account
        match [request.method, *rest]:
            case ["POST", "preupload", revision]:
                return _preuploaded(repo, revision, request.json())
            case ["POST", "commit", branch]:
                if _true(request.asked("create_pr")):
                    raise Refused(400, "Pull requests are not known here")
                made = repo.change(branch, request.lines(), request.account.name)
                url = f"{_base(request)}/{repo.prefix}{repo.id}/commit/{made}"
                return Answer({"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})
            case ["POST", "branch", branch]:
                start = repo.commit(request.json().get("startingPoint") or "main")["id"]
                return _named(repo, "branches", branch, start)
            case ["POST", "tag", revision]:
                return _named(repo, "tags", request.json()["tag"], repo.commit(revision)["id"])
            case ["DELETE", "branch", "main"]:
                raise Refused(403, "The branch main cannot be deleted")
            case ["DELETE", ("branch" | "tag") as what, name]:
                names = repo.told["branches" if what == "branch" else "tags"]
                if name not in names:
                    raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
                del names[name]
                repo.save()
                return Answer({})
            case ["PUT", "settings"]:
                asked = request.json()
                repo.told |= {"gated": asked["gated"]} if "gated" in asked else {}
                repo.told |= {"private": asked["visibility"] == "private"} if "visibility" in asked else {}
                repo.save()
                return Answer({})
            case ["POST", "super-squash", branch]:
                tree = repo.commit(repo.told["branches"].get(branch, "?"))["tree"]
                for entry in tree.values():
                    del entry["commit"]
                repo.add_commit(branch, tree, request.json()["message"], "", request.account.name, root=True)
                return Answer({})
        raise Refused(404, "Not found")

    def _resolve(self, request: Request, repo: Repo, revision: str, path: list[str]) -> Answer:
        commit = repo.commit(revision)
        headers = {"X-Repo-Commit": commit["id"], "Accept-Ranges": "bytes"}
        entry = commit["tree"].get("/".join(path))
        if entry is None:
            raise Refused(404, f"{'/'.join(path)} does not exist", "EntryNotFound", headers=headers)
        data = self.store.blob(entry["sha256"]).read_bytes()
        headers |= {"ETag": f'"{entry["sha256"] if entry["lfs"] else entry["oid"]}"'}
        headers |= {"Content-Type": "application/octet-stream"}
        if entry["lfs"]:
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": headers["ETag"]}
        wanted = request.header("range")
        if wanted is None:
            return Answer(headers=headers, body=data)
        first, last = _range(wanted, len(data))
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Answer(status=206, headers=headers, body=data[first : last + 1])

    def _paged(self, request: Request, listed: list[Value], size: int) -> Answer:
        """The page that is asked for, and where the next one is."""
        start = int(request.asked("cursor") or 0)
        headers = {}
        if start + size < len(listed):
            again = urlencode({**request.query, "cursor": start + size}, doseq=True)
            headers["Link"] = f'<{_base(request)}{request.path.split("?")[0]}?{again}>; rel="next"'
        return Answer(listed[start : start + size], headers=headers)


def _base(request: Request) -> str:
    return f"http://{request.header('host')}"


def _true(told: str | None) -> bool:
    return (told or "").lower() in ("true", "1")


def _whoami(account: Account | None) -> Value:
    if account is None:
        raise Refused(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": account.role} for name in account.orgs]
    told = {"type": "user", "id": account.name, "name": account.name, "fullname": account.name, "orgs": orgs}
    token = {"displayName": "a test's", "role": account.role}
    email = f"{account.name}@example.org"
    return {**told, "email": email, "auth": {"type": "access_token", "accessToken": token}}


def _validated(asked: Value) -> Answer:
    try:
        told = front_matter(asked["content"])
    except ValueError as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return Answer(
        {"errors": [], "warnings": [] if told else [{"message": "empty or missing yaml metadata in repo card"}]}
    )


def _told(commit: Value) -> Value:
    told = {name: commit[name] for name in ("id", "title", "message", "date")}
    return {**told, "authors": [{"user": commit["author"]}]}


def _tree(repo: Repo, revision: str, path: str, recursive: bool, expand: bool) -> list[Value]:
    within = f"{path}/" if path else ""

    def chosen(each: str) -> bool:
        return each.startswith(within) and (recursive or "/" not in each[len(within) :])

    listed = repo.entries(revision, chosen, expand)
    if path and not listed:
        raise Refused(404, f"{path} does not exist on {revision!r}", "EntryNotFound")
    return listed


def _paths_info(repo: Repo, revision: str, body: bytes) -> Answer:
    asked = parse_qs(body.decode())
    wanted = {each.strip("/") for each in asked.get("paths", [])}
    chosen: Callable[[str], bool] = wanted.__contains__
    return Answer(repo.entries(revision, chosen, _true(asked.get("expand", [""])[0])))


def _preuploaded(repo: Repo, revision: str, asked: Value) -> Answer:
    """How each file shall come, and by which name the clients know that it is there already."""
    tree = repo.commit(revision)["tree"]
    files = []
    for each in asked["files"]:
        mode = upload_mode(each["path"], b64decode(each["sample"]), each["size"])
        there = tree.get(each["path"])
        oid = (there["sha256"] if there["lfs"] else there["oid"]) if there else None
        files.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Answer({"files": files, "commitOid": repo.commit(revision)["id"]})


def _named(repo: Repo, what: str, name: str, commit: str) -> Answer:
    """A new branch or tag; its name is a good one for git, more or less."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name:
        raise Refused(400, f"Invalid name {quote(name)}")
    if name in repo.told[what]:
        raise Refused(409, f"Reference {name} already exists")
    repo.told[what][name] = commit
    repo.save()
    return Answer({})


def _range(wanted: str, size: int) -> tuple[int, int]:
    """The first and the last byte; Refused if there are none."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted.strip())
    if found and (found[1] or found[2]):
        first = int(found[1]) if found[1] else max(0, size - int(found[2]))
        last = min(int(found[2]), size - 1) if found[1] and found[2] else size - 1
        if first <= last:
            return first, last
    raise Refused(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
