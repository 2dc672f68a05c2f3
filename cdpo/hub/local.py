"""A hub in a folder, laid out so that what reads it needs no client:

    <root>/models/<owner>/<name>/snapshots/<id>/     the files of a commit, immutable; <id> is a hash of them
    <root>/models/<owner>/<name>/refs/<branch>       the id that a branch names
    <root>/collections/<title>.json                  {"title", "items": [{"type", "id"}]}

and `datasets` alike. A commit is gathered beside its place and renamed into it, a branch then named anew: whatever is
killed, a reader finds the old commit or the new one.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cdpo.config.canonical import digest
from cdpo.config.lock import HubName, Kind
from cdpo.files import file_sha256, fsync_path, read_json, write_json, write_text
from cdpo.hub.repos import CARD, Files, Published, folders_of
from cdpo.store import locks
from cdpo.store.names import safe_name


class LocalHub:
    """A `cdpo.hub.repos.Hub` over a folder; `owner` is whose the repositories are that are made."""

    def __init__(self, root: Path, owner: str) -> None:
        self.root, self.owner = root, owner

    def id_of(self, name: str) -> str:
        return f"{self.owner}/{name}"

    def replace(self, kind: Kind, name: str, branch: str, files: Files) -> Published:
        repo = self._repo(kind, f"{self.owner}/{name}")
        with self._alone(repo):
            return self._commit(repo, name, branch, files)

    def index(self, name: str, card: Callable[[Sequence[str]], str]) -> None:
        """A folder has no page that somebody sees first."""

    def put_folder(
        self, kind: Kind, name: str, folder: str, files: Files, card: Callable[[Sequence[str]], str]
    ) -> Published:
        repo = self._repo(kind, f"{self.owner}/{name}")
        with self._alone(repo):
            before = self._snapshot(repo, "main")
            kept = _files_of(before) if before else {}
            kept = {path: file for path, file in kept.items() if not path.startswith(f"{folder}/")}
            made: Files = {**kept, **{f"{folder}/{path}": file for path, file in files.items()}}
            return self._commit(
                repo, name, "main", {**made, CARD: card(sorted(path for path in made if path != CARD)).encode()}
            )

    def collect(self, title: str, kind: Kind, repo: str) -> None:
        path = self.root / "collections" / f"{safe_name(title)}.json"
        item = {"type": kind, "id": repo}
        with self._alone(self.root / "collections"):
            found = read_json(path) if path.exists() else {"title": title, "items": []}
            if item not in found["items"]:
                write_json(path, {**found, "items": [*found["items"], item]})

    def carried(self, kind: Kind, repo: str, tag: str) -> str | None:
        place = self._repo(kind, repo)
        if kind == "model":
            branches = self.branches(HubName(kind, repo))
            return None if tag not in branches else "the repository" if branches == [tag] else "a branch"
        before = self._snapshot(place, "main")
        folders = folders_of(_files_of(before)) if before else []
        return None if tag not in folders else "the repository" if folders == [tag] else "a folder"

    def remove(self, kind: Kind, repo: str, tag: str, card: Callable[[Sequence[str]], str]) -> None:
        place = self._repo(kind, repo)
        with self._alone(place):
            what = self.carried(kind, repo, tag)
            if what == "the repository":
                shutil.rmtree(place)
            elif what == "a branch":
                commit = self._snapshot(place, tag)
                (place / "refs" / tag).unlink()
                self._forget(place, [commit] if commit else [])
            elif what == "a folder":
                before = self._snapshot(place, "main")
                assert before is not None
                kept = {path: file for path, file in _files_of(before).items() if not path.startswith(f"{tag}/")}
                text = card(sorted(path for path in kept if path != CARD))
                self._commit(place, repo.rpartition("/")[2], "main", {**kept, CARD: text.encode()})
                self._forget(place, [path.parent for path in (place / "snapshots").glob(f"*/{tag}")])

    def find(self, name: HubName) -> tuple[str, Path] | None:
        """The commit that a branch (or the commit itself) names, and its folder; None where there is no such."""
        repo = self._repo(name.kind, name.id)
        folder = self._snapshot(repo, name.revision)
        if folder is None and (repo / "snapshots" / name.revision).is_dir():
            folder = repo / "snapshots" / name.revision
        return (folder.name, folder) if folder else None

    def branches(self, name: HubName) -> list[str]:
        """Of a repository; empty where there is none."""
        return sorted(path.name for path in (self._repo(name.kind, name.id) / "refs").glob("[!.]*"))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _repo(self, kind: Kind, id_: str) -> Path:
        return self.root / f"{kind}s" / id_

    def _snapshot(self, repo: Path, branch: str) -> Path | None:
        ref = repo / "refs" / branch
        if not ref.is_file():
            return None
        folder = repo / "snapshots" / ref.read_text(encoding="utf-8").strip()
        return folder if folder.is_dir() else None

    def _commit(self, repo: Path, name: str, branch: str, files: Files) -> Published:
        snapshots = repo / "snapshots"
        gathered = snapshots / f".{os.getpid()}.tmp"
        shutil.rmtree(gathered, ignore_errors=True)
        try:
            hashes = {path: _place(gathered / path, content) for path, content in sorted(files.items())}
            commit = digest(hashes)[:40]
            for folder in [gathered, *(path for path in gathered.rglob("*") if path.is_dir())]:
                fsync_path(folder)
            if not (snapshots / commit).exists():
                os.rename(gathered, snapshots / commit)
                fsync_path(snapshots)
        finally:
            shutil.rmtree(gathered, ignore_errors=True)
        write_text(repo / "refs" / branch, commit + "\n")
        return Published(f"{self.owner}/{name}", branch, commit, str(snapshots / commit))

    def _forget(self, repo: Path, commits: Sequence[Path]) -> None:
        """Remove those of `commits` that no branch names. Others stay, named or not: somebody may have pinned them."""
        named = {path.read_text(encoding="utf-8").strip() for path in (repo / "refs").glob("[!.]*")}
        for folder in commits:
            if folder.name not in named:
                shutil.rmtree(folder)

    @contextmanager
    def _alone(self, repo: Path) -> Iterator[None]:
        """Keep others, in this process and on this machine, away from a repository."""
        room = self.root / "locks"
        room.mkdir(parents=True, exist_ok=True)
        lock = locks.acquire(room / f"{digest(str(repo))[:16]}.lock", wait=True)
        assert lock is not None
        try:
            yield
        finally:
            lock.release(remove=True)


def _files_of(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def _place(path: Path, content: Path | bytes) -> str:
    """Write one file of a commit; its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)
    fsync_path(path)
    return file_sha256(path)
