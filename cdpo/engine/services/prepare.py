"""`python -m cdpo.engine.services.prepare FOLDER`: makes the model of a service that no folder holds as it is served.

One that cdpo builds from numbers, or one that is merged with its adapter for a server that takes no adapters. A process
of its own, because it alone needs torch. Exit codes: 0 made, 1 the reason is the last line that it wrote.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdpo import trust
from cdpo.engine.services.commands import needs_merging
from cdpo.errors import CdpoError
from cdpo.files import read_json

#: half made
PART = "model.part"
#: built, to be merged with its adapter
BASE = "model.base"
#: copies of the model's own code, where it is trusted
MODULES = "modules"
#: by this file a server would sample where a request says nothing; requests alone say how
SAMPLING = "generation_config.json"


def main(folder: Path) -> int:
    keep = read_json(folder / "service.json")
    try:
        _make(keep, folder)
    except CdpoError as error:
        print(error, flush=True)
        return 1
    return 0


def _make(keep: Mapping[str, Any], folder: Path) -> None:
    part = folder / PART
    part.mkdir()
    if keep.get("trusted"):
        trust.allow([Path(keep["model"]), Path(keep["adapter"])], folder / MODULES)
    if keep["build"] is None:
        merge(Path(keep["model"]), Path(keep["adapter"]), part)
    else:
        from cdpo import models

        models.build(keep["build"], part)
        if needs_merging(keep):
            base = folder / BASE
            os.rename(part, base)
            part.mkdir()
            merge(base, Path(keep["adapter"]), part)
    (part / SAMPLING).unlink(missing_ok=True)
    os.rename(part, folder / "model")


def merge(model: Path, adapter: Path, folder: Path) -> None:
    """Write `model` with `adapter` merged into its weights, and the tokenizer that belongs to both, to `folder`.

    They are added up in fp32, and stored in the type that `model` is stored in.
    """
    import torch

    from cdpo.models import DTYPES, load_policy, read_tokenizer
    from cdpo.weights import stored_dtype

    merged = load_policy(model, adapter, dtype="fp32", device=torch.device("cpu")).merge_and_unload()
    merged.to(DTYPES[stored_dtype(model)]).save_pretrained(folder)
    own = (adapter / "tokenizer_config.json").exists()
    read_tokenizer(adapter if own else model).save_pretrained(folder)


def link(model: Path, folder: Path) -> None:
    """Make `folder`, which holds links to the files of `model`."""
    folder.mkdir()
    for path in model.iterdir():
        if path.name != SAMPLING:
            (folder / path.name).symlink_to(path)


def clear(folder: Path) -> None:
    """Remove what was made, whole or in part."""
    for name in ("model", PART, BASE, MODULES):
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
