"""What is known of runs besides their metrics: how long their training took, and where they were published."""

import contextlib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.store import Store
from cdpo.store.names import short

HUB = "https://huggingface.co"
PUSH = "PUSH"


def training_seconds(refs: Iterable[Mapping[str, Any]], finished: Mapping[str, Path]) -> dict[str, float]:
    """`tag/name` -> seconds that the training of the run's own method took; runs that have not trained are left out.

    `finished` is `Store.finished()`.
    """
    found = {}
    for ref in refs:
        for key in reversed(ref["steps"]):
            folder = finished.get(short(key))
            if folder is not None and folder.parent.name == ref["method"]:
                with contextlib.suppress(OSError, DamagedFile, KeyError, TypeError, ValueError):
                    manifest = folder / "manifest.json"
                    found[f"{ref['tag']}/{ref['name']}"] = _seconds(manifest, os.stat(manifest).st_mtime_ns)
                break
    return found


@lru_cache(maxsize=100_000)
def _seconds(manifest: Path, written: int) -> float:
    """Read once for each time that it was written."""
    return float(read_json(manifest)["seconds"])


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
