"""Looking names up and downloading what they stand for: the only place that reads from the Hugging Face Hub.

Of a model its safetensors, configuration and tokenizer are fetched, and its Python files only where its entry trusts
them; of a dataset the files of its splits. A download that was interrupted is gone on with. The token is
huggingface_hub's own (`HF_TOKEN`, or the file of `hf auth login`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cdpo.config.hub import LOCAL_OWNER, SERVICE
from cdpo.config.hub_cache import snapshot
from cdpo.config.lock import NAME, HubName, Lock, Pin
from cdpo.errors import UsageError
from cdpo.files import read_json
from cdpo.hub.contents import ADAPTER
from cdpo.hub.trouble import Trouble

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from cdpo.hub.local import LocalHub

#: of a model: what from_pretrained reads beside the weights
_BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken")
TOKENIZER = "tokenizer_config.json"
#: transformers runs files that lie beside the weights, and none in folders
CODE = ".py"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
#: where the Hub keeps the parquet files that it made of a dataset
_CONVERTED = "refs/convert/parquet"
_PINNED_URL = re.compile(r"hf://datasets/[^@]+@[^/]+/(?P<path>.+)")


def fetch(lock: Lock, names: Sequence[HubName], say: Callable[[str], None], local: "LocalHub | None" = None) -> None:
    """Pin every name that is not pinned yet, and see that the files of all of them are on this machine.

    Names are looked for in the `local` hub first, where there is one.
    Raises UsageError where a name cannot be found, may not be read, or holds nothing that cdpo reads.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    problems: dict[str, Exception] = {}
    for name in dict.fromkeys(names):
        try:
            if local is None or not _take(local, lock, name):
                if name.id.startswith(f"{LOCAL_OWNER}/") and lock.find(name) is None:
                    raise ValueError(_not_local(local))
                _fetch(api, lock, name, say)
        except Exception as error:
            problems[f"{name}: {_said(error, name, api)}"] = error
    if problems:
        raise UsageError("\n".join(problems)) from next(iter(problems.values()))


def _not_local(local: "LocalHub | None") -> str:
    if local is not None:
        return f"there is none in {local.root}"
    return f"it is of a local hub, and {SERVICE} (or HF_TOKEN) names the Hugging Face Hub: write `kind: local` there"


def fetch_file(name: HubName, path: str) -> Path | None:
    """One file of a repository as it is now; None where there is no such repository, revision or file, or none that may
    be seen. Raises UsageError where the Hub cannot tell."""
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        return Path(api.hf_hub_download(name.id, path, repo_type=name.kind, revision=name.revision))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        if isinstance(error, errors.GatedRepoError):
            raise UsageError(f"{name}: {_said(error, name, api)}") from error
        return None
    except Exception as error:
        raise UsageError(f"{name}: {_said(error, name, api)}") from error


def _fetch(api: "HfApi", lock: Lock, name: HubName, say: Callable[[str], None]) -> None:
    known = pin = lock.find(name)
    if pin is None or (name.code and not pin.code):
        say(f"looking up {name}")
        pin = _model(api, name, pin.commit if pin else None) if name.kind == "model" else _dataset(api, name)
    folder = snapshot(name, pin)
    if not pin.found_in(folder):
        say(f"downloading {name} ({len(pin.files)} files, {sum(pin.files.values()) / 1e6:.1f} MB)")
        _download(api, name, pin)
    if pin is not known:
        lock.keep(name, _completed(name, pin, folder))


def _take(local: "LocalHub", lock: Lock, name: HubName) -> bool:
    """Whether a local hub has the name (as it is pinned, where it is); it is pinned then."""
    known = lock.find(name)
    wanted = known.commit if known else name.revision
    found = local.find(replace(name, revision=wanted))
    if found is None:
        if branches := local.branches(name):
            raise ValueError(f"no revision {wanted!r} of it in {local.root}; there are: {', '.join(branches)}")
        return False
    commit, folder = found
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if name.kind == "model":
        code = name.code or (known is not None and known.code)
        files = model_files(list(sizes), code)
        pin = Pin(commit, {path: sizes[path] for path in files}, code=code, folder=str(folder))
    else:
        splits = splits_of(str(folder), name.config)
        pin = Pin(
            commit, {path: sizes[path] for files in splits.values() for path in files}, splits, folder=str(folder)
        )
    lock.keep(name, _completed(name, pin, folder))
    return True


# -- models -----------------------------------------------------------------------------------------------------------


def _model(api: "HfApi", name: HubName, commit: str | None) -> Pin:
    """Of `commit`, where the name is pinned already and more of it is wanted."""
    info = api.model_info(name.id, revision=commit or name.revision, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
    assert info.sha is not None
    try:
        files = model_files(list(sizes), name.code)
    except ValueError as error:
        refs = api.list_repo_refs(name.id).branches
        others = sorted(each.name for each in refs if each.name not in (name.revision, "main"))
        listed = f". Its branches are {', '.join(others)}: write {name.id}@{others[0]}" if others else ""
        raise ValueError(f"{error}{listed}") from None
    return Pin(info.sha, {path: sizes[path] for path in files}, code=name.code)


def model_files(paths: Sequence[str], code: bool = False) -> list[str]:
    """What is fetched of a model's files, with those that transformers would run where `code`.

    Raises ValueError where it has no safetensors.
    """
    outer = [path for path in paths if "/" not in path]
    # mistralai's repositories hold the same weights twice
    weights = [path for path in outer if path.endswith(".safetensors") and not path.startswith("consolidated")]
    if not weights:
        pickles = [path for path in outer if path.endswith(_PICKLES)]
        if pickles:
            raise ValueError(
                f"its weights are pickles ({', '.join(pickles[:3])}), which can run any program when they are read: "
                "convert them on a machine that you can lose, by from_pretrained and save_pretrained, and name the "
                "folder"
            )
        raise ValueError("it holds no safetensors: no weights that cdpo reads")
    beside = [path for path in outer if path.endswith((*_BESIDE, CODE) if code else _BESIDE)]
    templates = [path for path in paths if PurePosixPath(path).match("additional_chat_templates/*.jinja")]
    return sorted({*weights, *beside, *templates})


def _completed(name: HubName, pin: Pin, folder: Path) -> Pin:
    """The pin with what only a model's files tell."""
    from cdpo.plan.references import has_format

    if name.kind != "model":
        return pin
    if ADAPTER not in pin.files:
        return replace(pin, speaks=has_format(folder))
    settings = read_json(folder / ADAPTER)
    base = str(settings.get("base_model_name_or_path"))
    if not NAME.match(base):
        raise ValueError(f"it is an adapter of {base}, which is on no hub: nobody else can load it")
    speaks = TOKENIZER not in pin.files or has_format(folder)
    return replace(pin, base=f"{base.partition('@')[0]}@{settings.get('revision') or 'main'}", speaks=speaks)


# -- datasets ---------------------------------------------------------------------------------------------------------


def _dataset(api: "HfApi", name: HubName) -> Pin:
    info = api.dataset_info(name.id, revision=name.revision, files_metadata=True)
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
    commit = info.sha
    assert commit is not None
    if _is_script(name, list(sizes)):
        info = api.dataset_info(name.id, revision=_CONVERTED, files_metadata=True)
        sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
        assert info.sha is not None
        commit, splits = info.sha, converted_splits(list(sizes), name.config)
    else:
        splits = splits_of(name.id, name.config, commit)
    return Pin(commit, {path: sizes[path] for files in splits.values() for path in files}, splits)


def _is_script(name: HubName, paths: Sequence[str]) -> bool:
    """Whether a dataset is made by a program of its own, which nobody should have to run."""
    return f"{name.id.rpartition('/')[2]}.py" in paths


def converted_splits(paths: Sequence[str], config: str | None) -> dict[str, list[str]]:
    """The files by split among `CONFIG/SPLIT/0000.parquet`; a split that was not converted as a whole is left out.

    Raises ValueError where there is no such config, or no one config to take.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for path in sorted(paths):
        parts = PurePosixPath(path).parts
        if len(parts) == 3 and parts[2].endswith(".parquet") and not parts[1].startswith("partial-"):
            found.setdefault(parts[0], {}).setdefault(parts[1], []).append(path)
    if config is None and len(found) == 1:
        return next(iter(found.values()))
    if config not in found:
        what = f"no config {config!r}" if config else "several configs, and none is named"
        raise ValueError(f"it has {what}; there are: {', '.join(found) or 'none'}")
    return found[config]


def splits_of(where: str, config: str | None, commit: str | None = None) -> dict[str, list[str]]:
    """The files of a dataset by split, relative to it, as `datasets` tells them: by its card, else by their names.

    `where` is an id (of which `commit` is read) or a local folder.
    """
    from datasets import load_dataset_builder

    builder = load_dataset_builder(where, config, revision=commit)
    splits = {}
    for split, files in (builder.config.data_files or {}).items():
        splits[str(split)] = [_relative(str(file), where) for file in files]
    return splits


def _relative(file: str, where: str) -> str:
    pinned = _PINNED_URL.match(file)
    return pinned["path"] if pinned else str(Path(file).relative_to(Path(where).resolve()))


# -- both -------------------------------------------------------------------------------------------------------------


def _download(api: "HfApi", name: HubName, pin: Pin) -> None:
    folder = snapshot(name, pin)
    api.snapshot_download(name.id, repo_type=name.kind, revision=pin.commit, allow_patterns=_literally(pin.files))
    if not pin.found_in(folder):
        missing = [path for path in pin.files if not (folder / path).exists()]
        raise ValueError(f"not all of it arrived in {folder}: {', '.join(missing) or 'files have another size'}")


def _literally(files: Mapping[str, int]) -> list[str]:
    """Patterns that fit these files alone."""
    return [re.sub(r"([*?\[])", r"[\1]", path) for path in files]


def _said(error: Exception, name: HubName, api: "HfApi") -> str:
    """What went wrong, and what to do."""
    from huggingface_hub import errors

    trouble = Trouble(error, api)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"not in the cache, and {trouble}"
    if isinstance(error, errors.GatedRepoError):
        return f"gated: ask for access on its page at {trouble.host}, and give your token as HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is none at {trouble.host}, or it is private and the token (HF_TOKEN) may not see it"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {name.revision!r}"
    return str(trouble)
