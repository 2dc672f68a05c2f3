"""The collections of the test Hub. A slug is `namespace/title-in-words-<id>`; the id alone finds it."""

import re
import secrets
from typing import Any

from tests.hub.hub_messages import Account, Answer, Refused, Request
from tests.hub.hub_repos import Repos, allow, now
from tests.hub.hub_store import Store

Value = dict[str, Any]

#: the longest note, as the documentation of the client says
LONGEST_NOTE = 500


class Collections:
    """Answers what goes to /api/collections."""

    def __init__(self, store: Store, repos: Repos):
        self.store, self.repos = store, repos

    def answer(self, request: Request) -> Answer:
        account = request.account
        with self.store.lock:
            match [request.verb, *request.segments[2:]]:
                case ["GET"]:
                    return Answer(self._listed(request, account))
                case ["POST"]:
                    return Answer(self._create(account, request.json()))
                case ["GET", namespace, slug]:
                    return Answer(self._shown(self._find(namespace, slug, account), account))
                case ["PATCH", namespace, slug]:
                    changed = self._update(self._writable(namespace, slug, account), request.json())
                    return Answer({"success": True, "data": self._shown(changed, account)})
                case ["DELETE", namespace, slug]:
                    self.store.remove(_file(self._writable(namespace, slug, account)))
                    return Answer({"success": True})
                case ["POST", namespace, slug, "items"]:
                    changed = self._add(self._writable(namespace, slug, account), request.json(), account)
                    return Answer(self._shown(changed, account))
                case ["PATCH", namespace, slug, "items", item]:
                    self._update_item(self._writable(namespace, slug, account), item, request.json())
                    return Answer({"success": True})
                case ["DELETE", namespace, slug, "items", item]:
                    self._remove_item(self._writable(namespace, slug, account), item)
                    return Answer({"success": True})
        raise Refused(404, "Not found")

    def moved(self, kind: str, old: str, new: str) -> None:
        """Items of a repo go with it."""
        for path in self.store.folder.glob("collections/[!.]*.json"):
            told = self.store.read_json(f"collections/{path.name}")
            for item in told["items"]:
                if (item["type"], item["id"]) == (kind[:-1], old):
                    item["id"] = new
                    self._save(told)

    def _listed(self, request: Request, account: Account | None) -> list[Value]:
        owners, items = request.query.get("owner", []), request.query.get("item", [])
        found = []
        for path in sorted(self.store.folder.glob("collections/[!.]*.json")):
            told = self.store.read_json(f"collections/{path.name}")
            named = [f"{item['type']}s/{item['id']}" for item in told["items"]]
            if not self._visible(told, account) or (owners and told["namespace"] not in owners):
                continue
            if items and not set(items) & set(named):
                continue
            # the client counts the position itself, and stumbles over one
            shown = self._shown(told, account)
            found.append({name: value for name, value in shown.items() if name != "position"})
        found.sort(key=lambda each: each["lastUpdated"], reverse=True)
        return found[: int(request.asked("limit") or 100)]

    def _visible(self, told: Value, account: Account | None) -> bool:
        return not told["private"] or bool(account and account.may_see(told["namespace"]))

    def _find(self, namespace: str, slug: str, account: Account | None) -> Value:
        told = None
        if found := re.search("[0-9a-f]{24}$", slug):
            told = self.store.read_json(f"collections/{found[0]}.json")
        if not told or told["namespace"] != namespace or not self._visible(told, account):
            raise Refused(404, "Collection not found")
        return told

    def _writable(self, namespace: str, slug: str, account: Account | None) -> Value:
        told = self._find(namespace, slug, account)
        allow(account, namespace)
        return told

    def _create(self, account: Account | None, asked: Value) -> Value:
        allow(account, asked["namespace"])
        for path in self.store.folder.glob("collections/[!.]*.json"):
            told = self.store.read_json(f"collections/{path.name}")
            if (told["namespace"], told["title"]) == (asked["namespace"], asked["title"]):
                # the clients take the slug out of the refusal
                raise Refused(409, "A collection with this title exists", slug=_slug(told))
        told = {"_id": secrets.token_hex(12), "namespace": asked["namespace"], "title": asked["title"]}
        told |= {"description": asked.get("description"), "private": bool(asked.get("private"))}
        told |= {"theme": "orange", "position": 0, "items": []}
        self._save(told)
        return self._shown(told, account)

    def _update(self, told: Value, asked: Value) -> Value:
        told.update(
            {name: asked[name] for name in ("title", "description", "private", "theme", "position") & asked.keys()}
        )
        return self._save(told)

    def _add(self, told: Value, asked: Value, account: Account | None) -> Value:
        item = asked["item"]
        if item["type"] in ("model", "dataset", "space"):
            self.repos.find(f"{item['type']}s", *_two(item["id"]), account)
        elif item["type"] != "paper":
            raise Refused(400, f"Items of the type {item['type']!r} are not known here")
        if any((each["id"], each["type"]) == (item["id"], item["type"]) for each in told["items"]):
            raise Refused(409, "The item is in the collection already")
        told["items"].append({"_id": secrets.token_hex(12), **item, **_note(asked)})
        return self._save(told)

    def _update_item(self, told: Value, item: str, asked: Value) -> None:
        found = self._item(told, item)
        found.update(_note(asked))
        if "position" in asked:
            told["items"].remove(found)
            told["items"].insert(asked["position"], found)
        self._save(told)

    def _remove_item(self, told: Value, item: str) -> None:
        told["items"].remove(self._item(told, item))
        self._save(told)

    def _item(self, told: Value, item: str) -> Value:
        for each in told["items"]:
            if each["_id"] == item:
                return each
        raise Refused(404, "Item not found")

    def _save(self, told: Value) -> Value:
        told["updated"] = now()
        self.store.write_json(_file(told), told)
        return told

    def _shown(self, told: Value, account: Account | None) -> Value:
        """As the clients read it, without what the account may not see and what is gone."""
        items = [each for each in told["items"] if self._there(each, account)]
        listed = [{**each, "position": place} for place, each in enumerate(items)]
        kept = {name: told[name] for name in ("title", "description", "private", "theme", "position")}
        owner = {"type": "user", "name": told["namespace"], "fullname": told["namespace"]}
        return {
            **kept,
            "slug": _slug(told),
            "owner": owner,
            "items": listed,
            "lastUpdated": told["updated"],
            "upvotes": 0,
        }

    def _there(self, item: Value, account: Account | None) -> bool:
        if item["type"] == "paper":
            return True
        try:
            self.repos.find(f"{item['type']}s", *_two(item["id"]), account)
        except Refused:
            return False
        return True


def _file(told: Value) -> str:
    return f"collections/{told['_id']}.json"


def _slug(told: Value) -> str:
    words = re.sub("[^a-z0-9]+", "-", told["title"].lower()).strip("-")
    return f"{told['namespace']}/{words}-{told['_id']}"


def _note(asked: Value) -> Value:
    if "note" not in asked:
        return {}
    if len(asked["note"]) > LONGEST_NOTE:
        raise Refused(400, f"A note has at most {LONGEST_NOTE} characters")
    return {"note": {"text": asked["note"], "html": asked["note"]}}


def _two(id: str) -> tuple[str, str]:
    namespace, _, name = id.partition("/")
    return namespace, name
