"""Policies that always or never end a response, and the watchdog's thresholds, for tests of the watchdog."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cdpo.config.watchdog import Watchdog

#: how a policy ends its answers: at once, or never
ALWAYS, NEVER = 1.0, -1.0


def device(**thresholds: Any) -> dict[str, Any]:
    return {"watchdog": {**Watchdog().model_dump(), **thresholds}}


def ending(base: Path, folder: Path, sign: float) -> Path:
    """A policy that gives the end token with probability 1 (ALWAYS) or 0 (NEVER), whatever stands before it."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = sign
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
