"""What was published of a tag, as the PUSH steps of a store remember it, and how it is taken back."""

from collections.abc import Callable
from dataclasses import dataclass

from cdpo.config.lock import Kind
from cdpo.files import read_json
from cdpo.hub.cards import index_card
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
        self.hub.remove(self.kind, self.repo, self.tag, index_card(self.run))


def published(store: Store, tag: str, note: Callable[[str], None]) -> list[Publication]:
    """All that is still there of what this store published under `tag`. Raises CdpoError where a hub cannot be asked.

    Only what a step of this store put there is touched: a repository that nobody here published to is nobody's to
    delete, whatever it is called.
    """
    from cdpo.pipelines.push import PUSHParams

    found: dict[tuple[str, str, str], Publication] = {}
    for folder in store.finished().values():
        if folder.parent.name != PUSH:
            continue
        params = PUSHParams(**store.manifest(folder)["params"])
        if params.tag != tag:
            continue
        hub = open_hub(params, store, note)
        for each in read_json(folder / "out" / "pushed.json"):
            what = hub.carried(each["kind"], each["repo"], tag)
            if what is not None:
                made = Publication(each["kind"], each["repo"], tag, what, each["url"], hub, params.run)
                found[params.hub, each["kind"], each["repo"]] = made
    return list(found.values())
