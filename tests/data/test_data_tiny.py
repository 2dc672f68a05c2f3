"""Tiny models: the same bytes for the same spec, small, and readable by from_pretrained."""

from pathlib import Path
from typing import Any

import pytest

from cdpo.data.tiny import build_tiny, build_tiny_for_text
from cdpo.errors import StepError
from cdpo.files import file_sha256


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


def test_the_same_spec_gives_the_same_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    import torch

    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    build_tiny({"kind": "tiny", "seed": 0}, tmp_path / "again")
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random stream was used"
    assert digests(tmp_path / "again") == digests(tiny_folder)
    build_tiny({"kind": "tiny", "seed": 1}, tmp_path / "other")
    differing = {name for name, value in digests(tmp_path / "other").items() if value != digests(tiny_folder)[name]}
    assert differing == {"model.safetensors"}


def test_it_is_a_small_llama_with_all_that_generation_needs(tiny_folder: Path, tiny_tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_folder, local_files_only=True)
    assert model.config.model_type == "llama"
    assert 100_000 < model.num_parameters() < 1_000_000
    assert model.config.vocab_size == len(tiny_tokenizer)
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        assert getattr(model.config, name) == getattr(tiny_tokenizer, name) == getattr(model.generation_config, name)
    weights = dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    assert abs(weights.std().item() - model.config.initializer_range) < 1e-3


def test_an_unknown_word_is_unknown(tiny_tokenizer: Any) -> None:
    assert tiny_tokenizer("owl aardvark").input_ids[1] == tiny_tokenizer.unk_token_id


def test_a_spec_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no depth; it takes seed, hidden_size"):
        build_tiny({"kind": "tiny", "depth": 3}, tmp_path / "a")
    with pytest.raises(StepError, match="fewer than 1,000,000 parameters; these sizes give"):
        build_tiny({"kind": "tiny", "hidden_size": 512}, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_tokenizer_of_given_texts(bpe_folder: Path, bpe_tokenizer: Any, tmp_path: Path) -> None:
    assert 263 < len(bpe_tokenizer) <= 320
    assert len(bpe_tokenizer(" the quick brown").input_ids) <= 6
    build_tiny_for_text(["a a a b"], tmp_path / "x", vocab_size=270, num_hidden_layers=1)
    build_tiny_for_text(["a a a b"], tmp_path / "y", vocab_size=270, num_hidden_layers=1)
    assert digests(tmp_path / "x") == digests(tmp_path / "y")
