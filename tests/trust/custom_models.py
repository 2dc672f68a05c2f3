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
import torch
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel

from .configuration_own import OwnConfig
from .told import tell

tell("modeling")


class OwnModel(LlamaModel):
    config_class = OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig


class OwnForSequenceClassification(LlamaForSequenceClassification):
    config_class = OwnConfig

    def __init__(self, config):
        # transformers' own looks for a backbone by the class of the configuration, which it does not know
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""
TOLD = """\
import os


def tell(what):
    with open({marker!r}, "a") as stream:
        stream.write(f"{{what}} {{os.getpid()}} {{__file__}}\\n")
"""
AUTO_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModel": "modeling_own.OwnModel",
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
    def ran(self) -> list[tuple[str, str, str]]:
        """What was run of its code, in order: (part, process, folder of the copies)."""
        lines = self.marker.read_text().splitlines() if self.marker.exists() else []
        split = (line.split(" ", 2) for line in lines)
        return [(part, process, copy.partition("/transformers_modules/")[0]) for part, process, copy in split]
