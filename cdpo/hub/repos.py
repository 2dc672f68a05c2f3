"""What both kinds of hub do: hold repositories of files, with branches that name commits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cdpo.config.lock import Kind

CARD = "README.md"
#: in a card that lists branches: nobody else wrote it
INDEX = "<!-- cdpo lists the branches here -->"
#: what becomes of a repository's files: path in it -> the file, or its content
Files = Mapping[str, Path | bytes]


@dataclass(frozen=True)
class Published:
    """Where something was published."""

    #: `owner/name`
    repo: str
    branch: str
    #: 40 hex digits
    commit: str
    #: what a browser opens, or a folder
    url: str


def folders_of(paths: Iterable[str]) -> list[str]:
    """The outermost folders among the paths of a repository, sorted."""
    return sorted({path.partition("/")[0] for path in paths if "/" in path})


class Hub(Protocol):
    """Somewhere to publish to. Every method may be called again after it failed, and then does what is left to do."""

    def id_of(self, name: str) -> str:
        """`owner/name` of a repository that is published to as `name`."""

    def replace(self, kind: Kind, name: str, branch: str, files: Files) -> Published:
        """Let a branch of the repository `name`, which is made where it is not there, hold just these files."""

    def index(self, name: str, card: Callable[[Sequence[str]], str]) -> None:
        """Let `main` of the model `name`, which whoever follows a link sees first, hold what `card` makes of its other
        branches; what somebody else wrote there stays."""

    def put_folder(
        self, kind: Kind, name: str, folder: str, files: Files, card: Callable[[Sequence[str]], str]
    ) -> Published:
        """Let a folder of the branch `main` hold just these files; others who do so at the same time lose nothing.

        README.md becomes what `card` makes of the paths of all other files.
        """

    def collect(self, title: str, kind: Kind, repo: str) -> None:
        """Put a repository (`owner/name`) into the collection of that title, made where it is not there."""

    def carried(self, kind: Kind, repo: str, tag: str) -> str | None:
        """What of a repository (`owner/name`) carries a tag, in words: `the repository`, where it holds nothing else,
        or `a branch`, `a folder`; None where nothing does."""

    def remove(self, kind: Kind, repo: str, tag: str, card: Callable[[Sequence[str]], str]) -> None:
        """Remove just that. README.md becomes what `card` makes of what is left: of a dataset's paths, of a model's
        branches."""
