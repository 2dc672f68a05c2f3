"""A model that brings code of its own: a Llama under another name, whose files tell when they are run."""

import json
from pathlib import Path

from cdpo.models import build

CONFIGURATION = """\
from transformers import LlamaConfig

from .told import tell

tell("configuration")


class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODELING = """\
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from .configuration_own import OwnConfig
from .told import tell

tell("modeling")


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig


class OwnForSequenceClassification(LlamaForSequenceClassification):
    config_class = OwnConfig
"""
TOLD = """\
from pathlib import Path


def tell(what):
    with open({marker!r}, "a") as stream:
        stream.write(what + " " + __file__ + "\\n")
"""
AUTO_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
}


class Custom:
    """The folder of such a model."""

    def __init__(self, folder: Path, marker: Path, model_type: str = "own_llama") -> None:
        self.folder, self.marker = folder, marker
        build({"kind": "tiny", "seed": 0}, folder)
        self.configure(model_type=model_type, architectures=["OwnForCausalLM"], auto_map=AUTO_MAP)
        (folder / "configuration_own.py").write_text(CONFIGURATION)
        (folder / "modeling_own.py").write_text(MODELING)
        (folder / "told.py").write_text(TOLD.format(marker=str(marker)))

    def configure(self, **settings: object) -> None:
        path = self.folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    @property
    def ran(self) -> list[str]:
        """What was run of its code, `FILE COPY`, in order."""
        return self.marker.read_text().splitlines() if self.marker.exists() else []
