"""Where models and evaluations are published: `configs/services/huggingface.yaml`, which git ignores.

    kind: huggingface          # or local, the default: a folder
    organization: my-lab       # else the owner of the token
    token: hf_...              # else HF_TOKEN, or what `hf auth login` left
    prefix: {models: cdpo-, evaluations: cdpo-eval-}
    private: true

Nothing of it is hashed into the key of a step but where a PUSH step publishes to.
"""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, StringConstraints

from cdpo.config.params import Params
from cdpo.config.problems import ConfigError
from cdpo.config.validation import checked
from cdpo.config.yaml_reader import read_yaml

SERVICE = "services/huggingface.yaml"
#: who owns what is published to a folder, where no organization is named
LOCAL_OWNER = "local"

#: characters of a repository's name on the Hub
MOST = 96

Part = Annotated[str, StringConstraints(pattern=r"^[\w.-]*$", max_length=40)]


class Prefixes(Params):
    """What stands before a run's name in the name of its repository."""

    models: Part = ""
    evaluations: Part = ""


class Collections(Params):
    """Titles of the collections that repositories are put into; none by default."""

    models: str | None = None
    evaluations: str | None = None


class HubSettings(Params):
    kind: Literal["local", "huggingface"] | None = None
    """Without it: huggingface where there is a token, here or in HF_TOKEN, else local."""
    organization: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*$")] | None = None
    token: SecretStr | None = None
    root: str | None = None
    """Of `kind: local`: the folder; without it `hub` in the store."""
    prefix: Prefixes = Field(default_factory=Prefixes)
    collections: Collections = Field(default_factory=Collections)
    private: bool = True
    """Whether repositories are made private."""

    @property
    def where(self) -> Literal["local", "huggingface"]:
        return self.kind or ("huggingface" if self.token is not None or os.environ.get("HF_TOKEN") else "local")

    @property
    def owner(self) -> str | None:
        """None: the owner of the token, whom only the Hub can name."""
        return self.organization or (LOCAL_OWNER if self.where == "local" else None)

    def of_run(self, run: str) -> dict[str, Any]:
        """Where a run is published: the parameters of a PUSH step."""
        return {
            "hub": self.where,
            "owner": self.owner,
            "root": self.root if self.where == "local" else None,
            "model_repo": repo_name(self.prefix.models + run),
            "evaluation_repo": repo_name(self.prefix.evaluations + run),
            "collections": self.collections.model_dump(),
            "private": self.private,
        }

    def root_of(self, store: Path) -> Path:
        return Path(os.path.expanduser(self.root)).absolute() if self.root else store / "hub"

    def use_token(self) -> None:
        """Let the Hub's clients, here and in the processes that this one starts, find the token of the file."""
        if self.token is not None:
            os.environ.setdefault("HF_TOKEN", self.token.get_secret_value())


def repo_name(text: str) -> str:
    """`text` as the Hub takes it for a repository: ASCII letters, digits and `_ . -`, no two of the last in a row, at
    most 96. What had to be changed ends in a hash of what it was, so that no two runs share a name.

    >>> repo_name("DPO_beta0.1_s0"), repo_name("DPO_a+b_s0")
    ('DPO_beta0.1_s0', 'DPO_a-b_s0-81d401d1')
    """
    safe = re.sub(r"[-.]{2,}", "-", re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)).strip("-.").removesuffix(".git")
    if safe and safe == text and len(text) <= MOST:
        return text
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{safe[: MOST - len(mark) - 1].rstrip('-.') or 'run'}-{mark}"


def read_hub(configs: Path) -> HubSettings:
    """The settings, or the defaults where there is no such file. Raises ConfigError, which shows no secret."""
    path = configs / SERVICE
    if not path.exists():
        return HubSettings()
    try:
        document = read_yaml(path, may_be_empty=True)
        found, problems = (
            (HubSettings(), []) if document is None else checked(HubSettings, document.value, document, ())
        )
    except ConfigError as error:
        found, problems = None, error.problems
    if found is None or problems:
        # what stands there is not shown: it may be the token
        raise ConfigError(
            replace(each, message=each.message.partition(", not ")[0], secret=True) for each in problems
        ) from None
    settings: HubSettings = found
    return settings


def readable_by_others(configs: Path) -> Path | None:
    """The file, where it holds a token and others on this machine may read it."""
    path = configs / SERVICE
    if path.exists() and path.stat().st_mode & 0o077 and read_hub(configs).token is not None:
        return path
    return None
