"""The services that run in a store, as files and locks tell it."""

from typing import Any

from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.store import Store
from cdpo.store.services import rooms


def services(store: Store) -> list[dict[str, Any]]:
    """One mapping for each service that is kept: name, label, state, text, pid (None: no server), restarts, users."""
    users = _users(store)
    found = []
    for room in rooms(store):
        if room.is_kept():
            # a keeper that has just begun has said nothing yet
            said = room.state() or {
                "state": "preparing",
                "text": "its keeper begins",
                "label": room.name,
                "restarts": 0,
            }
            about = {name: said[name] for name in ("label", "state", "text", "restarts")}
            found.append({"name": room.name, **about, "pid": said.get("server"), "users": users.get(room.name, [])})
    return found


def _users(store: Store) -> dict[str, list[str]]:
    """The steps that run and have a service, by its name."""
    found: dict[str, list[str]] = {}
    for key in store.working():
        try:
            described = read_json(store.work(key) / "step.json")
        except (FileNotFoundError, DamagedFile):
            continue
        folder = (described["device"].get("service") or {}).get("folder")
        if folder is not None and store.is_locked(key):
            label = f"{described['pipeline']}/{described['name']}-{key[:12]}"
            found.setdefault(folder.rpartition("/")[2], []).append(label)
    return found
