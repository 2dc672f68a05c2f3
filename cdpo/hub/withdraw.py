"""What was published of a tag, as the PUSH steps of a store remember it, and how it is taken back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdpo.config.lock import Kind
from cdpo.files import read_json
from cdpo.hub.cards import branches_card, index_card
from cdpo.hub.open import open_hub
from cdpo.hub.repos import Hub
from cdpo.pipeline import PUSH
from cdpo.store import Store


@dataclass(frozen=True)
class Publication:
    """What of a repository carries a tag."""

    kind: Kind
    #: `owner/name`
    repo: str
    tag: str
    #: `the repository`, where it holds nothing else; `a branch`; `a folder`
    what: str
    url: str
    hub: Hub
    run: str

    def remove(self) -> None:
        card = branches_card(self.repo) if self.kind == "model" else index_card(self.run)
        self.hub.remove(self.kind, self.repo, self.tag, card)

    def __str__(self) -> str:
        """What `remove` deletes."""
        if self.what == "the repository":
            return f"the whole {self.kind} {self.repo}, which holds nothing but the tag {self.tag}: {self.url}"
        kind, _, part = self.what.partition(" ")
        return f"{kind} {part} {self.tag} of the {self.kind} {self.repo}; the rest stays: {self.url}"


def published(store: Store, tag: str, note: Callable[[str], None]) -> list[Publication]:
    """All that is still there of what this store published under `tag`. Raises CdpoError where a hub cannot be asked.

    Only what a step of this store put there is touched: a repository that nobody here published to is nobody's to
    delete, whatever it is called.
    """
    found: dict[tuple[str, str, str], Publication] = {}
    for key, params in _pushes(store):
        if params.tag == tag:
            for made in _there(store, key, params, note):
                found[params.hub, made.kind, made.repo] = made
    return list(found.values())


def pushes_of(store: Store, tag: str) -> list[str]:
    """The keys of the steps that published under `tag`, as far as the store has them."""
    return [key for key, params in _pushes(store) if params.tag == tag]


def is_there(store: Store, key: str, note: Callable[[str], None]) -> bool:
    """Whether all that a finished PUSH step published still is. Raises CdpoError where a hub cannot be asked."""
    folder = store.find(key)
    assert folder is not None
    params = _params(store, folder)
    return len(list(_there(store, key, params, note))) == len(_pushed(store, key))


def _pushes(store: Store) -> Iterator[tuple[str, Any]]:
    """Key and parameters of every finished PUSH step."""
    for folder in store.finished().values():
        if folder.parent.name == PUSH:
            yield store.full_key(folder), _params(store, folder)


def _params(store: Store, folder: Path) -> Any:
    from cdpo.pipelines.push import PUSHParams

    return PUSHParams(**store.manifest(folder)["params"])


def _there(store: Store, key: str, params: Any, note: Callable[[str], None]) -> Iterator[Publication]:
    hub = open_hub(params, store, note)
    for each in _pushed(store, key):
        what = hub.carried(each["kind"], each["repo"], params.tag)
        if what is not None:
            yield Publication(each["kind"], each["repo"], params.tag, what, each["url"], hub, params.run)


def _pushed(store: Store, key: str) -> list[dict[str, Any]]:
    folder: Path | None = store.find(key)
    assert folder is not None
    found: list[dict[str, Any]] = read_json(folder / "out" / "pushed.json")
    return found
