"""The runs that a user or an organization published on the Hugging Face Hub, as a store that the viewer reads.

What cdpo/hub/shown.py put beside responses (or beside a model that has none) becomes refs and steps again, without
weights. Only what changed since the last time is downloaded. Nothing of it is believed: names become names of files by
the store's own rules, and files are taken by name from a list.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cdpo.errors import CdpoError, UsageError
from cdpo.files import read_json, write_json
from cdpo.hub.shown import ROOM, RUN, TABLES
from cdpo.hub.trouble import Trouble
from cdpo.store import Store
from cdpo.store.names import folder_name

_NAMESPACE = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
_PIPELINE = re.compile(r"[A-Z][A-Z_]{0,39}")
_KEY = re.compile(r"[0-9a-f]{64}")
#: what the cards of all that cdpo publishes are tagged with
TAG = "cdpo"
#: the repositories that were taken: {"KIND REPO@BRANCH": {"commit", "runs": [[tag, name], ...]}}
SEEN = "hub.json"
RESPONSES = "responses.parquet"


def home(namespace: str) -> Path:
    """Where the store lies that shows a namespace: in the user's cache, one for each Hub."""
    from huggingface_hub import HfApi

    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    host = re.sub(r"[^\w.-]+", "-", str(HfApi().endpoint).partition("://")[2])
    return cache / "cdpo" / "hub" / host / namespace


def mirror(namespace: str, say: Callable[[str], None] = lambda text: None) -> Store:
    """Bring the store of a namespace up to date and give it. Raises UsageError for a name that is none, CdpoError where
    the Hub cannot tell; a store that was made before stays as it is then."""
    from huggingface_hub import HfApi

    if not _NAMESPACE.fullmatch(namespace):
        raise UsageError(f"{namespace!r} is no name of a user or an organization on the Hub")
    api, root = HfApi(), home(namespace)
    try:
        _update(api, namespace, root, say)
    except (UsageError, CdpoError):
        raise
    except Exception as error:
        raise CdpoError(f"{namespace} on the Hub: {Trouble(error, api)}") from error
    return Store(root)


def _update(api: Any, namespace: str, root: Path, say: Callable[[str], None]) -> None:
    store = Store(root)
    before = read_json(root / SEEN) if (root / SEEN).exists() else {}
    now = {f"{kind} {repo}@{branch}": (kind, repo, commit) for kind, repo, branch, commit in _there(api, namespace)}
    if not now and not before:
        raise UsageError(f"{api.endpoint} has nothing of cdpo's under {namespace} that this token may see")
    seen = dict(before)
    for name in before.keys() - now.keys():
        _forget(store, seen.pop(name)["runs"])
    changed = [name for name, (_, _, commit) in now.items() if before.get(name, {}).get("commit") != commit]
    for at, name in enumerate(changed, start=1):
        kind, repo, commit = now[name]
        say(f"{at}/{len(changed)} {repo}")
        patterns = [f"*/{ROOM}/*", "*/*.parquet"] if kind == "dataset" else [f"{ROOM}/*"]
        found = Path(api.snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=patterns))
        taken = [_take(store, folder) for folder in _runs_in(found, kind)]
        _forget(store, [run for run in seen.get(name, {}).get("runs", []) if run not in taken])
        seen[name] = {"commit": commit, "runs": taken}
        # one by one: what was interrupted goes on where it was
        write_json(root / SEEN, seen, durable=False)
    write_json(root / SEEN, seen, durable=False)


def _forget(store: Store, runs: list[list[str]]) -> None:
    for tag, name in runs:
        store.remove_ref(tag, name)


def _there(api: Any, namespace: str) -> Iterator[tuple[str, str, str, str]]:
    """Kind, repository, branch and commit of what cdpo published."""
    for each in api.list_datasets(author=namespace, filter=TAG):
        yield "dataset", each.id, "main", each.sha or api.dataset_info(each.id).sha
    for each in api.list_models(author=namespace, filter=TAG):
        for branch in api.list_repo_refs(each.id).branches:
            if branch.name != "main":
                yield "model", each.id, branch.name, branch.target_commit


def _runs_in(snapshot: Path, kind: str) -> list[Path]:
    """The folders of a snapshot that hold a run."""
    rooms = [snapshot] if kind == "model" else sorted(path for path in snapshot.iterdir() if path.is_dir())
    return [room for room in rooms if (room / ROOM / RUN).is_file()]


def _take(store: Store, folder: Path) -> list[str]:
    """Add one published run, and those of its steps that are not there yet; its tag and name."""
    try:
        run = json.loads((folder / ROOM / RUN).read_text(encoding="utf-8"))
        manifests = [
            (path.parent, json.loads(path.read_text(encoding="utf-8")))
            for path in sorted((folder / ROOM / "steps").glob("*/*/manifest.json"))
        ]
        for place, manifest in manifests:
            _add_step(store, folder, place, manifest)
        names = ("seed", "method", "model", "dataset", "params", "steps", "recipe", "labels", "select")
        about = {name: run[name] for name in names if name in run}
        tag, name = str(run["tag"]), str(run["name"])
        store.write_ref(tag, name, {"marks": [], **about})
        return [tag, name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CdpoError(f"{folder.name} of {folder.parent.name}: not as cdpo publishes it ({error!r})") from error


def _add_step(store: Store, published: Path, place: Path, manifest: dict[str, Any]) -> None:
    pipeline, key = manifest["pipeline"], manifest["key"]
    if not _PIPELINE.fullmatch(pipeline) or not _KEY.fullmatch(key):
        raise ValueError(f"{pipeline} {key} is no step")
    if store.find(key) is not None:
        return
    beside = store.steps / pipeline / f".{key[:12]}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "out").mkdir(parents=True)
    outputs = {}
    for name in TABLES:
        if (place / "out" / name).is_file() and name in manifest["outputs"]:
            shutil.copyfile(place / "out" / name, beside / "out" / name)
            outputs[name] = manifest["outputs"][name]
    if pipeline == "GEN":
        # the responses, with the scores beside them, are what everybody downloads
        for split in sorted(published.glob("*.parquet"))[:1]:
            shutil.copyfile(split, beside / "out" / RESPONSES)
            outputs[RESPONSES] = {"size": split.stat().st_size, "sha256": None}
    if (place / "metrics.jsonl").is_file():
        shutil.copyfile(place / "metrics.jsonl", beside / "metrics.jsonl")
    write_json(beside / "manifest.json", {**manifest, "outputs": outputs}, durable=False)
    place_of_step = store.steps / pipeline / folder_name(str(manifest["name"]), key)
    try:
        os.rename(beside, place_of_step)
    except OSError:
        shutil.rmtree(beside)
        if not place_of_step.is_dir():  # else somebody else was faster, with the same step
            raise
