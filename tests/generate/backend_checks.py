"""What every backend must do that runs a model of ours, checked against transformers' own `generate` and forward pass.

Each check takes a function `open(folder, adapter)` that opens the backend on a model's folder and an adapter's, if any.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from cdpo.config.params import SamplingParams
from cdpo.generate.backend import Backend, Item, Sampled

Open = Callable[[Path, Path | None], Backend]

PAD, BOS, END, OTHER_END = 0, 2, 3, 9
ENDS = [END, OTHER_END]
#: one prompt of the model of ten words
PROMPT = [BOS, 4, 7, 5]


def build_model(folder: Path) -> Path:
    """The playground's tiny model, with weights so large that it is sure of its words; some responses end early."""
    from transformers import AutoModelForCausalLM

    from cdpo.data.tiny import build_tiny

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    build_tiny({"kind": "tiny", "seed": 3, **sizes}, folder)
    _enlarge(AutoModelForCausalLM.from_pretrained(folder), 0.2).save_pretrained(folder)
    return folder


def build_adapter(model: Path, folder: Path) -> Path:
    """A LoRA adapter that changes what `model` says, of a rank that is no power of two."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    modules = ["q_proj", "v_proj", "down_proj"]
    config = LoraConfig(r=24, lora_alpha=48, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def build_ten_words(folder: Path) -> Path:
    """A model whose vocabulary has ten entries, none of them impossible."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = {"pad_token": "<|pad|>", "unk_token": "<|unk|>", "bos_token": "<|bos|>", "eos_token": "<|end|>"}
    words = [*special.values(), *"abcdef"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=64).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=END,
    )
    _enlarge(LlamaForCausalLM(config), 0.13).save_pretrained(folder)
    return folder


def _enlarge(model: Any, deviation: float) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" not in name:
                parameter.normal_(0.0, deviation, generator=generator)
    return model


def load(folder: Path, adapter: Path | None = None) -> Any:
    from cdpo.models import load_policy

    return load_policy(folder, adapter, device=torch.device("cpu"))


def prompts(count: int) -> list[list[int]]:
    """Of various lengths; each begins with its BOS."""
    draw = random.Random(0)
    return [[BOS, *(draw.randrange(7, 160) for _ in range(draw.randrange(1, 60)))] for _ in range(count)]


def answers(
    backend: Backend, items: Sequence[Item], sampling: SamplingParams, ends: Sequence[int] = ENDS
) -> list[Sampled]:
    found = list(backend.generate(items, sampling, end_ids=ends))
    assert sorted(at for at, _ in found) == list(range(len(items))), "every response once"
    return [sampled for _, sampled in sorted(found)]


def check_greedy(open: Open, folder: Path, adapter: Path | None = None) -> None:
    """40 prompts of 2 to 60 tokens: token for token what transformers' `generate` says to each alone."""
    sampling = SamplingParams(do_sample=False, max_new_tokens=24)
    asked = prompts(40)
    with closing(open(folder, adapter)) as backend:
        ours = answers(backend, [Item(each, at) for at, each in enumerate(asked)], sampling)
    model = load(folder, adapter)
    theirs = []
    for prompt in asked:
        given = torch.tensor([prompt])
        made = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=ENDS,
            pad_token_id=PAD,
        )
        theirs.append(made[0, len(prompt) :].tolist())
    assert [each.token_ids for each in ours] == theirs
    assert len({tuple(each) for each in theirs}) > 30, "prompts that are answered alike would prove nothing"
    check_ends(ours, 24)


def check_ends(responses: Sequence[Sampled], most: int) -> None:
    """An end token once, and last, where a response stopped; nowhere where it was cut off; both do occur."""
    for each in responses:
        assert each.token_ids is not None
        at_end = [token in ENDS for token in each.token_ids]
        assert not any(at_end[:-1])
        assert each.finish_reason == ("stop" if at_end[-1] else "length")
        assert at_end[-1] or len(each.token_ids) == most
    assert {each.finish_reason for each in responses} == {"stop", "length"}


def check_logprobs(open: Open, folder: Path, adapter: Path | None = None) -> None:
    """Of each drawn token under the model itself, whatever it was drawn from: a forward pass over the whole text."""
    sampling = SamplingParams(temperature=0.7, top_k=20, top_p=0.9, max_new_tokens=24)
    asked = prompts(12)
    with closing(open(folder, adapter)) as backend:
        ours = answers(backend, [Item(each, at + 2**62) for at, each in enumerate(asked)], sampling)
    model = load(folder, adapter)
    for prompt, each in zip(asked, ours, strict=True):
        assert each.token_ids is not None
        assert each.logprobs is not None
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + each.token_ids])).logits[0, len(prompt) - 1 : -1]
        exact = logits.double().log_softmax(-1).gather(-1, torch.tensor(each.token_ids)[:, None])[:, 0]
        np.testing.assert_allclose(each.logprobs, exact.numpy(), rtol=0, atol=1e-4)


def check_seeds(open: Open, folder: Path) -> None:
    """A response is its seed's, in whatever company; K samples of a prompt are K responses."""
    sampling = SamplingParams(max_new_tokens=24)
    items = [Item(prompt, at * 7919 + 5, None) for at, prompt in enumerate(prompts(20))]
    several = [Item(items[0].prompt_ids, seed) for seed in range(16)]
    with closing(open(folder, None)) as backend:
        once = answers(backend, items, sampling)
        again = answers(backend, [*several[:5], *reversed(items)], sampling)[5:][::-1]
        others = answers(backend, [each._replace(seed=each.seed + 1) for each in items], sampling)
        sampled = answers(backend, several, sampling)
    assert [each[:2] for each in once] == [each[:2] for each in again]
    assert sum(one[:2] != other[:2] for one, other in zip(once, others, strict=True)) >= 18
    assert len({tuple(each.token_ids or ()) for each in sampled}) >= 14
    check_ends(once, 24)


def check_known(open: Open, folder: Path) -> None:
    """What is done already changes none of the rest."""
    sampling = SamplingParams(max_new_tokens=24)
    items = [Item(prompt, at) for at, prompt in enumerate(prompts(12))]
    with closing(open(folder, None)) as backend:
        whole = answers(backend, items, sampling)
        rest = dict(backend.generate(items, sampling, end_ids=ENDS, done=set(range(0, 12, 2))))
        assert list(backend.generate(items, sampling, end_ids=ENDS, done=set(range(12)))) == []
    assert set(rest) >= set(range(1, 12, 2))
    assert [rest[at][:2] for at in sorted(rest)] == [whole[at][:2] for at in sorted(rest)]


#: how tokens are drawn in `check_distribution`
CASES = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 0.8, "top_p": 0.7},
]


def check_distribution(open: Open, folder: Path, draws: int = 4000, wrong: float = 1.25) -> None:
    """`draws` one-token responses of the model of ten words, for each of CASES, against exact probabilities; and the
    test itself, which must see a temperature that is `wrong` times as high."""
    with torch.no_grad():
        logits = load(folder)(input_ids=torch.tensor([PROMPT])).logits[0, -1].double().numpy()
    with closing(open(folder, None)) as backend:
        for number, case in enumerate(CASES):
            items = [Item(PROMPT, at * 104729 + number) for at in range(draws)]
            drawn = answers(backend, items, SamplingParams(**case, max_new_tokens=1), [END])
            counts = np.bincount([each.token_ids[0] for each in drawn if each.token_ids], minlength=10)
            assert p_value(counts, exact(logits, **case)) > 1e-3, (case, counts)
            other = exact(logits, **{**case, "temperature": wrong * case["temperature"]})
            assert p_value(counts, other) < 1e-6, (case, counts)


def check_own_temperatures(open: Open, folder: Path) -> None:
    """An item's own temperature stands in for the common one."""
    prompt = prompts(1)[0]
    cold = [Item(prompt, seed, 0.01) for seed in range(8)]
    with closing(open(folder, None)) as backend:
        greedy = answers(backend, [Item(prompt, 0)], SamplingParams(do_sample=False, max_new_tokens=8))[0]
        mixed = answers(
            backend, [*cold, *(Item(prompt, seed, 2.0) for seed in range(8))], SamplingParams(max_new_tokens=8)
        )
    assert all(each[:2] == greedy[:2] for each in mixed[:8])
    assert len({tuple(each.token_ids or ()) for each in mixed[8:]}) > 6


def exact(logits: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """The definition, token by token: temperature, the k best, the smallest set of best ones that reaches top_p."""
    shares = np.exp((logits - logits.max()) / temperature)
    best_first = np.argsort(-shares)
    kept = best_first[: top_k or None]
    shares[np.setdiff1d(best_first, kept)] = 0
    shares /= shares.sum()
    needed = next(n for n in range(1, len(kept) + 1) if shares[kept[:n]].sum() >= top_p - 1e-12)
    shares[np.setdiff1d(best_first, kept[:needed])] = 0
    return shares / shares.sum()


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Of Pearson's chi-squared test; 0 where something was drawn that cannot be."""
    kept = probabilities > 0
    if counts[~kept].any():
        return 0.0
    return float(stats.chisquare(counts[kept], probabilities[kept] * counts.sum()).pvalue)
