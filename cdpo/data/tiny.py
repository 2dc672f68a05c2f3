"""Tiny language models that cdpo makes itself: a Llama of under a million parameters, initialised from scratch.

`build_tiny` knows the playground's words; `build_tiny_for_text` learns a byte-level BPE from given texts. Both write a
folder that `from_pretrained` reads, the same bytes for the same arguments.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cdpo.data.playground import vocabulary
from cdpo.errors import StepError
from cdpo.seeds import derive_seed

#: sizes of the network, by the names of transformers' LlamaConfig; a spec may give others
SIZES: dict[str, int] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
SPECIAL = {"pad_token": "<|pad|>", "unk_token": "<|unk|>", "bos_token": "<|bos|>", "eos_token": "<|end|>"}
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
MOST_PARAMETERS = 1_000_000

# Words are joined by blanks; a byte-level tokenizer needs none.
_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- 'SEP<|' + message['role'] + '|>SEP' + message['content'] -}}
{%- if message['role'] == 'assistant' -%}{{- 'SEP' + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'SEP<|assistant|>' -}}{%- endif -%}"""


def build_tiny(spec: dict[str, Any], folder: Path) -> None:
    """Write the playground's model for `spec`: {"kind": "tiny", "seed": 0} and any of SIZES. Decoding gives back any
    text of the playground's words; every other word is unknown. Raises StepError for a spec it does not understand.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    unknown = sorted(set(spec) - {"kind", "seed", *SIZES})
    if unknown:
        raise StepError(f"a tiny model has no {', '.join(unknown)}; it takes seed, {', '.join(SIZES)}")
    words = [*SPECIAL.values(), *ROLE_TOKENS, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sizes = {name: int(spec.get(name, default)) for name, default in SIZES.items()}
    _write(tokenizer, _TEMPLATE.replace("SEP", " "), sizes, int(spec.get("seed", 0)), folder)


def build_tiny_for_text(
    texts: Iterable[str], folder: Path, vocab_size: int = 2048, seed: int = 0, **sizes: int
) -> None:
    """Write a tiny model whose tokenizer is a byte-level BPE of `vocab_size` tokens (over 263) learned from `texts`.

    Decoding gives back every text. `sizes` are those of SIZES, with a context of 1,024 by default.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *ROLE_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    all_sizes = {**SIZES, "max_position_embeddings": 1024, **sizes}
    _write(tokenizer, _TEMPLATE.replace("SEP", ""), all_sizes, seed, folder)


def _write(tokenizer: Any, template: str, sizes: dict[str, int], seed: int, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **SPECIAL,
        extra_special_tokens=list(ROLE_TOKENS),
        model_max_length=sizes["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    fast.chat_template = template
    ids = {name.replace("token", "token_id"): fast.convert_tokens_to_ids(token) for name, token in SPECIAL.items()}
    del ids["unk_token_id"]
    config = LlamaConfig(vocab_size=len(fast), tie_word_embeddings=True, **sizes, **ids)
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    count = model.num_parameters()
    if count >= MOST_PARAMETERS:
        raise StepError(
            f"a tiny model has fewer than {MOST_PARAMETERS:,} parameters; these sizes give {count:,}: {sizes}"
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "tiny"))
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            # norms start at one; all else as Llama's initializer_range says
            if "norm" not in name:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
