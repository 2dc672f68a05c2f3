"""Where runs were published, as far as that is on the Hub."""

import contextlib
import os
from urllib.parse import urlsplit

from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.store import Store

HUB = "https://huggingface.co"
PUSH = "PUSH"


def published(store: Store) -> dict[str, dict[str, str]]:
    """`tag/name` -> {`model`: where it is, `dataset`: where its responses are}, of what stands on the hub."""
    room = store.steps / PUSH
    found: dict[str, dict[str, str]] = {}
    for folder in sorted(room.iterdir()) if room.is_dir() else []:
        with contextlib.suppress(OSError, DamagedFile, KeyError, TypeError):
            params = read_json(folder / "manifest.json")["params"]
            places = {str(each["kind"]): str(each["url"]) for each in read_json(folder / "out" / "pushed.json")}
            here = {kind: url for kind, url in places.items() if is_on_hub(url)}
            if here:
                found[f"{params['tag']}/{params['run']}"] = here
    return found


def is_on_hub(url: str) -> bool:
    """Whether an address leads to the Hub (or what `$HF_ENDPOINT` names) and nowhere else."""
    try:
        parts = urlsplit(url)
        own = {urlsplit(each).netloc for each in (HUB, os.environ.get("HF_ENDPOINT") or HUB)}
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc in own
