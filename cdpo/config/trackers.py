"""`report_to:` of devices.yaml: who is told of trainings besides metrics.jsonl. Never hashed: it changes no result.

None of these packages is imported here: a command that trains nothing does not pay for them.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Literal

from pydantic import Discriminator, Tag

from cdpo.errors import UsageError

Tracker = Literal["wandb", "trackio", "tensorboard"]
#: one name, or a list of them
ReportTo = Annotated[
    Annotated[Tracker, Tag("name")] | Annotated[list[Tracker], Tag("list")],
    Discriminator(lambda value: "list" if isinstance(value, list) else "name"),
]

#: wandb itself is asked, which knows its settings files, its server and who is logged in there; nothing is sent
_ASK_WANDB = (
    "import sys, wandb; from wandb.sdk.lib.wbauth import authenticate_session as ask; s = wandb.setup().settings; "
    "sys.exit(not (s._offline or s._noop or ask(host=s.base_url, source='cdpo', prompt=False)))"
)
#: seconds that it may take to answer
ASKING = 60.0


def listed(report_to: ReportTo) -> list[str]:
    """The names, each once."""
    return list(dict.fromkeys(report_to if isinstance(report_to, list) else [report_to]))


def obstacles(names: Iterable[str]) -> list[str]:
    """Why some of these trackers cannot be told anything, and what to do."""
    found = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            found.append(f"report_to: {name} is not installed: pip install 'cdpo[{name}]'")
            continue
        if name == "wandb" and not _logged_in():
            found.append(
                "report_to: wandb has no account: `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline to write "
                "files that `wandb sync` sends later"
            )
    return found


def refuse_untracked(names: Iterable[str]) -> None:
    """Raise UsageError where a tracker cannot be told anything: now, and not after hours of training."""
    wrong = obstacles(names)
    if wrong:
        raise UsageError("\n".join(wrong))


def _logged_in() -> bool:
    """Whether wandb needs no account, or has one; that the account is good, only its server knows."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
        return True
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK_WANDB],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=ASKING,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
