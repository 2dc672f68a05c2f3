"""Publishing to the Hugging Face Hub, one commit for one change.

Whoever changes a repository reads its head and commits on top of it; where somebody else was faster (409, 412), where
the Hub has no time (429, 5xx) and where a connection breaks, the head is read again and the change is made anew on top
of that. So an answer that was lost is no loss: the change is found made. Files that are there already are not sent.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cdpo.config.canonical import digest
from cdpo.config.lock import Kind
from cdpo.errors import CdpoError
from cdpo.hub.repos import CARD, INDEX, Files, Published, folders_of
from cdpo.hub.trouble import Trouble
from cdpo.store import locks

Made = TypeVar("Made")

#: how often a change is tried, and seconds between the first two tries and at most
TRIES = 10
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0


class HuggingFaceHub:
    """A `cdpo.hub.repos.Hub`; `owner` is an organization, or None for the owner of the token.

    `room`: a folder for the locks that keep this machine's processes from changing one repository at the same time.
    """

    def __init__(self, owner: str | None, room: Path, *, private: bool = True, note: Callable[[str], None]) -> None:
        from huggingface_hub import HfApi

        self._api, self._room, self._private, self._note = HfApi(), room, private, note
        self._owner = owner

    def id_of(self, name: str) -> str:
        if self._owner is None:
            self._owner = self._insist(lambda: str(self._api.whoami()["name"]), "the owner of the token")
        return f"{self._owner}/{name}"

    def replace(self, kind: Kind, name: str, branch: str, files: Files) -> Published:
        repo = self._made(kind, name)
        with self._alone(repo):

            def change() -> Published:
                self._api.create_branch(repo, branch=branch, repo_type=kind, exist_ok=True)
                head, there = self._head(kind, repo, branch)
                gone = [path for path in there if path not in files and path != ".gitattributes"]
                return self._commit(kind, repo, branch, head, files, gone)

            return self._insist(change, f"{kind} {repo}@{branch}")

    def index(self, name: str, card: Callable[[Sequence[str]], str]) -> None:
        repo = self.id_of(name)
        with self._alone(repo):
            self._insist(lambda: self._indexed(repo, card), f"model {repo}@main")

    def put_folder(
        self, kind: Kind, name: str, folder: str, files: Files, card: Callable[[Sequence[str]], str]
    ) -> Published:
        repo = self._made(kind, name)
        mine: Files = {f"{folder}/{path}": file for path, file in files.items()}
        with self._alone(repo):

            def change() -> Published:
                head, there = self._head(kind, repo, "main")
                gone = [path for path in there if path.startswith(f"{folder}/") and path not in mine]
                kept = [path for path in there if path not in gone]
                text = card(sorted({*kept, *mine} - {CARD})).encode()
                return self._commit(kind, repo, "main", head, {**mine, CARD: text}, gone)

            return self._insist(change, f"{kind} {repo} {folder}")

    def collect(self, title: str, kind: Kind, repo: str) -> None:
        def add() -> None:
            owner = repo.partition("/")[0]
            found = self._api.create_collection(title, namespace=owner, private=self._private, exists_ok=True)
            self._api.add_collection_item(found.slug, item_id=repo, item_type=kind, exists_ok=True)

        self._insist(add, f"collection {title}")

    def carried(self, kind: Kind, repo: str, tag: str) -> str | None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            if kind == "model":
                branches = self._branches(repo)
                if tag not in branches:
                    return None
                others = set(branches) - {tag} or [path for path in self._files(kind, repo) if path != CARD]
                return "a branch" if others or self._written(repo) else "the repository"
            folders = folders_of(self._files(kind, repo))
            return None if tag not in folders else "the repository" if folders == [tag] else "a folder"
        except RepositoryNotFoundError:
            return None
        except Exception as error:
            raise CdpoError(f"{kind} {repo}: {Trouble(error, self._api)}") from error

    def remove(self, kind: Kind, repo: str, tag: str, card: Callable[[Sequence[str]], str]) -> None:
        with self._alone(repo):

            def change() -> None:
                what = self.carried(kind, repo, tag)
                if what == "the repository":
                    self._api.delete_repo(repo, repo_type=kind, missing_ok=True)
                elif what == "a branch":
                    self._api.delete_branch(repo, branch=tag, repo_type=kind)
                    self._indexed(repo, card)
                elif what == "a folder":
                    head, there = self._head(kind, repo, "main")
                    gone = [path for path in there if path.startswith(f"{tag}/")]
                    text = card(sorted({*there} - {*gone} - {CARD})).encode()
                    self._commit(kind, repo, "main", head, {CARD: text}, gone)

            self._insist(change, f"{kind} {repo} {tag}")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _made(self, kind: Kind, name: str) -> str:
        """The id of a repository that is there."""
        repo = self.id_of(name)
        self._insist(
            lambda: self._api.create_repo(repo, repo_type=kind, private=self._private, exist_ok=True), f"{kind} {repo}"
        )
        return repo

    def _branches(self, repo: str) -> list[str]:
        """Of a model, but for `main`."""
        return [each.name for each in self._api.list_repo_refs(repo).branches if each.name != "main"]

    def _indexed(self, repo: str, card: Callable[[Sequence[str]], str]) -> None:
        branches = self._branches(repo)
        if not branches or self._written(repo):
            return
        head, _ = self._head("model", repo, "main")
        text = card(sorted(branches))
        if text != self._card(repo, head):
            self._commit("model", repo, "main", head, {CARD: text.encode()}, [])

    def _written(self, repo: str) -> bool:
        """Whether somebody else wrote the card on a model's `main`."""
        head, _ = self._head("model", repo, "main")
        text = self._card(repo, head)
        return text is not None and INDEX not in text

    def _card(self, repo: str, commit: str) -> str | None:
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(self._api.hf_hub_download(repo, CARD, revision=commit)).read_text(encoding="utf-8")
        except EntryNotFoundError:
            return None

    def _files(self, kind: Kind, repo: str) -> list[str]:
        """Of `main`, but for what the Hub puts there itself."""
        return [path for path in self._api.list_repo_files(repo, repo_type=kind) if path != ".gitattributes"]

    def _head(self, kind: Kind, repo: str, branch: str) -> tuple[str, list[str]]:
        """The newest commit of a branch, and its files."""
        info = self._api.repo_info(repo, repo_type=kind, revision=branch)
        assert info.sha is not None
        return info.sha, self._api.list_repo_files(repo, repo_type=kind, revision=info.sha)

    def _commit(self, kind: Kind, repo: str, branch: str, head: str, files: Files, gone: Sequence[str]) -> Published:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in files.items()
        ]
        operations += [CommitOperationDelete(path) for path in gone]
        info = self._api.create_commit(
            repo,
            operations,
            commit_message="published by cdpo",
            repo_type=kind,
            revision=branch,
            parent_commit=head,
        )
        prefix = "datasets/" if kind == "dataset" else ""
        return Published(repo, branch, str(info.oid or head), f"{self._api.endpoint}/{prefix}{repo}/tree/{branch}")

    def _insist(self, do: Callable[[], Made], what: str) -> Made:
        """What `do` returns, tried again while it may pass. Raises CdpoError, which names what was to be done."""
        jitter = random.Random(what)
        for attempt in range(1, TRIES + 1):
            try:
                return do()
            except Exception as error:
                trouble = Trouble(error, self._api)
                if not trouble.may_pass or attempt == TRIES:
                    raise CdpoError(f"{what}: {trouble}") from error
                pause = trouble.pause
                if pause is None:
                    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * jitter.uniform(0.5, 1.5)
                self._note(f"{what}: {trouble}; trying again in {pause:.1f} s")
                time.sleep(pause)
        raise AssertionError

    @contextmanager
    def _alone(self, repo: str) -> Iterator[None]:
        self._room.mkdir(parents=True, exist_ok=True)
        lock = locks.acquire(self._room / f"hub-{digest(repo)[:16]}.lock", wait=True)
        assert lock is not None
        try:
            yield
        finally:
            lock.release(remove=True)
