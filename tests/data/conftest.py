"""Tokenizers that the tests of the data room share, made once."""

from pathlib import Path
from typing import Any

import pytest

from cdpo.data.messages import user

#: text enough for a byte-level BPE to have merges to learn
TEXTS = ["Human: the quick brown fox jumps over the lazy dog", "Assistant: and then the dog sleeps, the fox too"] * 5


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cdpo.data.tiny import build_tiny

    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_tiny({"kind": "tiny", "seed": 0}, folder)
    return folder


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cdpo.data.tiny import build_tiny_for_text

    folder = tmp_path_factory.mktemp("bpe") / "model"
    build_tiny_for_text(TEXTS, folder, vocab_size=320)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_folder: Path) -> Any:
    return load(tiny_folder)


@pytest.fixture(scope="session")
def bpe_tokenizer(bpe_folder: Path) -> Any:
    return load(bpe_folder)


@pytest.fixture
def fresh_bpe(bpe_folder: Path) -> Any:
    """A tokenizer that a test may change."""
    return load(bpe_folder)


@pytest.fixture
def prompt() -> list[dict[str, str]]:
    return [user("list two birds then one tools without crow")]
