"""The runs that a user or an organization published on the Hugging Face Hub, as a store that the viewer reads.

What cdpo/hub/shown.py put beside responses (or beside a model that has none) becomes refs and steps again, without
weights. Only what changed since the last time is downloaded. Nothing of it is believed: names become names of files by
the store's own rules, and files are taken by name from a list.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cdpo.errors import CdpoError, DamagedFile, UsageError
from cdpo.files import read_json, write_json
from cdpo.hub.shown import ROOM, RUN, TABLES
from cdpo.hub.trouble import Trouble
from cdpo.report.collect import collect_run
from cdpo.report.groups import grouped
from cdpo.report.reading import Reader
from cdpo.report.select import choose
from cdpo.store import Store, locks
from cdpo.store.names import folder_name, short

_NAMESPACE = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
_PIPELINE = re.compile(r"[A-Z][A-Z_]{0,39}")
_KEY = re.compile(r"[0-9a-f]{64}")
#: what the cards of all that cdpo publishes are tagged with
TAG = "cdpo"
#: the repositories that were taken: {"KIND REPO@BRANCH": {"commit", "runs": [[tag, name], ...], "steps": [key,
#: ...]}}, with the "problem" of one that could not be taken
SEEN = "hub.json"
RESPONSES = "responses.parquet"
#: bytes of a manifest, or of what describes a run, at most
MOST = 1 << 24
#: what describes a run, and a step
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("tag", "name", "method"), str),
    "seed": int,
    **dict.fromkeys(("model", "dataset"), (str, type(None))),
    "params": dict,
    "steps": list,
}
_OF_STEP: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("pipeline", "key", "name"), str),
    **dict.fromkeys(("params", "inputs", "outputs"), dict),
    "seconds": (int, float),
    "summary": (dict, type(None)),
}
_MAY = ("recipe", "labels", "select")


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
    api, store = HfApi(), Store(home(namespace))
    try:
        # somebody else may be looking at the same time
        lock = locks.acquire(store.locks / "mirror.lock", wait=True)
        assert lock is not None
        try:
            _update(api, namespace, store, say)
        finally:
            lock.release()
    except CdpoError:
        raise
    except OSError as error:
        if error.filename is None:
            raise CdpoError(f"{namespace} on the Hub: {Trouble(error, api)}") from error
        raise CdpoError(f"{error.filename}: {error.strerror}") from error
    except Exception as error:
        raise CdpoError(f"{namespace} on the Hub: {Trouble(error, api)}") from error
    return store


def problems(store: Store) -> list[str]:
    """What of the namespace could not be taken when it was looked at last, and why."""
    return [f"{name}: {each['problem']}" for name, each in _seen(store).items() if "problem" in each]


def _seen(store: Store) -> dict[str, dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError, DamagedFile):
        found: dict[str, dict[str, Any]] = read_json(store.root / SEEN)
        return found
    return {}


def _update(api: Any, namespace: str, store: Store, say: Callable[[str], None]) -> None:
    before = _seen(store)
    now = {f"{kind} {repo}@{branch}": (kind, repo, commit) for kind, repo, branch, commit in _there(api, namespace)}
    if not now and not before:
        raise UsageError(f"{api.endpoint} has nothing of cdpo's under {namespace} that this token may see")
    changed = {name for name, (_, _, commit) in now.items() if before.get(name, {}).get("commit") != commit}
    # two repositories may hold the same run: what one of them says of it goes when that one does
    moved = [run for name in {*changed, *(before.keys() - now.keys())} for run in before.get(name, {}).get("runs", [])]
    changed |= {name for name in now if any(run in moved for run in before.get(name, {}).get("runs", []))}
    seen = {name: each for name, each in before.items() if name in now}
    for at, name in enumerate((name for name in now if name in changed), start=1):
        kind, repo, commit = now[name]
        say(f"{at}/{len(changed)} {repo}")
        seen[name] = {"commit": commit, "runs": [], "steps": []}
        try:
            patterns = [f"*/{ROOM}/*", "*/*.parquet"] if kind == "dataset" else [f"{ROOM}/*"]
            found = Path(api.snapshot_download(repo, repo_type=kind, revision=commit, allow_patterns=patterns))
            for folder in _runs_in(found, kind):
                _take(store, folder, seen[name])
        except CdpoError as error:
            seen[name]["problem"] = str(error)
        except Exception as error:
            trouble = Trouble(error, api)
            # one that is gated, or gone since it was listed, keeps nobody from seeing the others
            if trouble.status is None or trouble.may_pass:
                raise
            seen[name] |= {"commit": None, "problem": str(trouble)}
        # one by one: what was interrupted goes on where it was
        write_json(store.root / SEEN, seen, durable=False)
    _sweep(store, seen)
    write_json(store.root / SEEN, seen, durable=False)


def _sweep(store: Store, seen: Mapping[str, Mapping[str, Any]]) -> None:
    """Remove what no repository holds any more."""
    runs = [run for each in seen.values() for run in each["runs"]]
    for ref in store.read_refs():
        if [ref["tag"], ref["name"]] not in runs:
            store.remove_ref(ref["tag"], ref["name"])
    steps = {short(key) for each in seen.values() for key in each["steps"]}
    for key, folder in store.finished().items():
        if key not in steps:
            shutil.rmtree(folder)


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


def _take(store: Store, folder: Path, seen: dict[str, Any]) -> None:
    """Add one published run, and those of its steps that are not there yet; `seen` learns of both. Raises CdpoError
    where it cannot be read; nothing of it is in the store then."""
    made: list[Path] = []
    try:
        run = _json(folder / ROOM / RUN)
        _check(run, _KINDS)
        steps = []
        for path in sorted((folder / ROOM / "steps").glob("*/*/manifest.json")):
            manifest = _json(path)
            if (new := _add_step(store, folder, path.parent, manifest)) is not None:
                made.append(new)
            steps.append(manifest["key"])
        ref = {"marks": [], **{name: run[name] for name in (*_KINDS, *_MAY) if name in run}}
        # whatever is wrong with what is read of it is known before anybody looks
        collect_run(store, ref)
        grouped(choose([Reader(store).run(ref)])[0])
        store.write_ref(run["tag"], run["name"], {name: ref[name] for name in ref if name not in ("tag", "name")})
    except Exception as error:
        for each in made:
            shutil.rmtree(each, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise  # it is this machine
        raise CdpoError(f"{folder.name} of {folder.parent.name}: not as cdpo publishes it ({error!r})") from error
    seen["runs"].append([run["tag"], run["name"]])
    seen["steps"] += steps


def _check(found: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__}, and no description")
    for name, kind in kinds.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"{name}: {found.get(name)!r:.60}")


def _json(path: Path) -> Any:
    if path.stat().st_size > MOST:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _add_step(store: Store, published: Path, place: Path, manifest: dict[str, Any]) -> Path | None:
    """Its new place; None where it was there. Of two that are published under one key the later one is shown."""
    import pyarrow.parquet as pq

    _check(manifest, _OF_STEP)
    _check(manifest["inputs"], dict.fromkeys(manifest["inputs"], dict))
    pipeline, key = manifest["pipeline"], manifest["key"]
    if not _PIPELINE.fullmatch(pipeline) or not _KEY.fullmatch(key):
        raise ValueError(f"{pipeline} {key} is no step")
    before: Path | None = store.find(key)
    beside = store.steps / pipeline / f".{key[:12]}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    tables: dict[str, tuple[Path, Any]] = {
        name: (place / "out" / name, manifest["outputs"][name])
        for name in TABLES
        if (place / "out" / name).is_file() and name in manifest["outputs"]
    }
    if pipeline == "GEN":
        # the responses, with the scores beside them, are what everybody downloads
        for split in sorted(published.glob("*.parquet"))[:1]:
            tables[RESPONSES] = (split, {"size": split.stat().st_size, "sha256": None})
    told = {**manifest, "outputs": {name: about for name, (_, about) in tables.items()}}
    if before is not None:
        old = store.manifest(before)
        if old == told or old.get("finished", 0) > told.get("finished", 0):
            return None
    try:
        (beside / "out").mkdir(parents=True)
        for name, (path, _) in tables.items():
            pq.read_schema(path)
            shutil.copyfile(path, beside / "out" / name)
        if (place / "metrics.jsonl").is_file():
            shutil.copyfile(place / "metrics.jsonl", beside / "metrics.jsonl")
        write_json(beside / "manifest.json", told, durable=False)
        if before is not None:
            shutil.rmtree(before)
        made: Path = store.steps / pipeline / folder_name(str(manifest["name"]), key)
        os.rename(beside, made)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return made
