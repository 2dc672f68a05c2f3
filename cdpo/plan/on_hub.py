"""What a name on a hub stands for in a plan: the commit it is pinned to, and its files where they are on this machine.

Nothing here opens a connection; `cdpo/hub/fetch.py` does, when data is prepared.
"""

from dataclasses import replace
from pathlib import Path

from cdpo.config.hub_cache import snapshot
from cdpo.config.lock import HubName, Lock, Pin
from cdpo.plan.graph import Input


class NoSplit(ValueError):
    """A dataset has no split of that name."""


def model_input(lock: Lock, name: HubName) -> Input:
    pin, folder = found(lock, name)
    given = {"hub": name.id, "kind": name.kind, "asked": name.revision, "revision": pin.commit if pin else None}
    return {**given, "folder": str(folder)} if folder else given


def base_input(lock: Lock, name: HubName) -> Input | None:
    """Of an adapter: the model that it is for; None of any other."""
    pin = lock.find(name)
    if pin is None or pin.base is None:
        return None
    return model_input(lock, replace(HubName.parse("model", pin.base), code=name.code))


def split_input(lock: Lock, name: HubName, split: str | None) -> Input:
    """One split of a dataset; without a name it is `train`, or the only one. Raises NoSplit."""
    pin, folder = found(lock, name)
    given: Input = {"hub": name.id, "kind": name.kind, "asked": name.revision, "config": name.config}
    if pin is None:
        return {**given, "split": split, "revision": None}
    if split is None:
        split = next(iter(pin.splits)) if len(pin.splits) == 1 else "train"
    if split not in pin.splits:
        raise NoSplit(f"{name} has no split {split!r}; there are: {', '.join(pin.splits) or 'none'}")
    given |= {"split": split, "revision": pin.commit}
    return {**given, "files": [str(folder / path) for path in pin.splits[split]]} if folder else given


def found(lock: Lock, name: HubName) -> tuple[Pin | None, Path | None]:
    """What `name` is pinned to, and the folder of that where all of it is on this machine."""
    pin = lock.find(name)
    folder = snapshot(name, pin) if pin else None
    whole = pin and folder and pin.found_in(folder) and (pin.code or not name.code)
    return pin, folder if whole else None
