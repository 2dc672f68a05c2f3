"""The hub that a PUSH step names."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cdpo.config.hub import LOCAL_OWNER
from cdpo.hub.repos import Hub
from cdpo.store import Store


class Where(Protocol):
    """What of a PUSH step's parameters says where to."""

    @property
    def hub(self) -> str: ...
    @property
    def owner(self) -> str | None: ...
    @property
    def root(self) -> str | None: ...
    @property
    def private(self) -> bool: ...


def open_hub(where: Where, store: Store, note: Callable[[str], None]) -> Hub:
    if where.hub == "local":
        from cdpo.hub.local import LocalHub

        root = Path(where.root).expanduser() if where.root else store.root / "hub"
        return LocalHub(root, where.owner or LOCAL_OWNER)
    from cdpo.hub.huggingface import HuggingFaceHub

    return HuggingFaceHub(where.owner, store.locks, private=where.private, note=note)
