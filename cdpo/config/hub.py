"""Where models and evaluations are published: `configs/services/huggingface.yaml`, which git ignores.

    kind: huggingface          # or local, the default: a folder
    organization: my-lab       # else the owner of the token
    token: hf_...              # else HF_TOKEN, or what `hf auth login` left
    prefix: {models: cdpo-, evaluations: cdpo-eval-}
    private: true

Nothing of it is hashed into the key of a step but where a PUSH step publishes to.
"""

import os
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
    """Without it: huggingface where HF_TOKEN is set, else local."""
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
        return self.kind or ("huggingface" if os.environ.get("HF_TOKEN") else "local")

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
            "model_repo": self.prefix.models + run,
            "evaluation_repo": self.prefix.evaluations + run,
            "collections": self.collections.model_dump(),
            "private": self.private,
        }

    def root_of(self, store: Path) -> Path:
        return Path(os.path.expanduser(self.root)).absolute() if self.root else store / "hub"

    def use_token(self) -> None:
        """Let the Hub's clients, here and in the processes that this one starts, find the token of the file."""
        if self.token is not None:
            os.environ.setdefault("HF_TOKEN", self.token.get_secret_value())


def read_hub(configs: Path) -> HubSettings:
    """The settings, or the defaults where there is no such file. Raises ConfigError, which shows no secret."""
    path = configs / SERVICE
    if not path.exists():
        return HubSettings()
    document = read_yaml(path, may_be_empty=True)
    if document is None:
        return HubSettings()
    found, problems = checked(HubSettings, document.value, document, ())
    if problems or found is None:
        raise ConfigError(problems)
    settings: HubSettings = found
    return settings


def readable_by_others(configs: Path) -> Path | None:
    """The file, where it holds a token and others on this machine may read it."""
    path = configs / SERVICE
    if path.exists() and path.stat().st_mode & 0o077 and read_hub(configs).token is not None:
        return path
    return None
