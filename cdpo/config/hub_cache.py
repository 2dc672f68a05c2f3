"""Where the snapshots of commits lie on this machine, told without importing huggingface_hub.

https://huggingface.co/docs/huggingface_hub/guides/manage-cache: `<cache>/models--ns--name/snapshots/<commit>/`.
"""

import os
from pathlib import Path

from cdpo.config.lock import HubName, Pin


def cache_root() -> Path:
    """The cache that the Hugging Face libraries share, by the environment variables that they heed."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(os.path.expandvars(os.path.expanduser(named)))
    home = os.environ.get("HF_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(os.path.expanduser(home))) / "hub"


def snapshot(name: HubName, pin: Pin) -> Path:
    """Where the files of a commit lie, whether they are there or not."""
    if pin.folder is not None:
        return Path(pin.folder)
    return cache_root() / f"{name.kind}s--{name.id.replace('/', '--')}" / "snapshots" / pin.commit
