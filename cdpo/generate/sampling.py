"""Drawing tokens so that nothing but the item's own seed, the position and the distribution decides them.

The Gumbel-max trick: argmax over v of (logit_v + G_v) with independent standard Gumbel G_v is a draw from
softmax(logits) (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030, section 2). Here G_v is a function of (seed of the
item, token position, v) alone, through a counter-based integer hash, so which rows share a batch, in which order they
come, and where a killed run goes on change nothing.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cdpo.config.params import SamplingParams

# The constants of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 17),
# as signed numbers: torch has no unsigned 64-bit arithmetic, and signed multiplication wraps to the same bits.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned right shift: torch's fills with the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(value: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser, a bijection of 64-bit integers in which every input bit moves every output bit."""
    value = (value ^ _shifted(value, 30)) * _FIRST
    value = (value ^ _shifted(value, 27)) * _SECOND
    return value ^ _shifted(value, 31)


def gumbel(seeds: torch.Tensor, positions: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Standard Gumbel noise, float64 `[rows, vocabulary]`, for `seeds` and token `positions`, both int64 `[rows]`."""
    # SplitMix64 twice: position t of the generator seeded with the item's seed starts the generator whose outputs are
    # the vocabulary's.
    starts = _mixed(_mixed(seeds) + (positions + 1) * _STEP)
    tokens = torch.arange(1, vocabulary + 1, dtype=torch.int64, device=seeds.device)
    bits = _mixed(starts[:, None] + tokens * _STEP)
    # 53 bits and a half: in (0, 1), neither end possible, so that the noise is finite.
    uniform = (_shifted(bits, 11).to(torch.float64) + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform))


def filtered(
    logits: torch.Tensor, sampling: "SamplingParams", temperatures: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits `[rows, vocabulary]` after temperature, then top-k, then top-p; what may not be drawn is -inf.

    `temperatures`, float64 `[rows]`, stand in for the one of `sampling`.

    As in transformers: tokens that tie with the k-th best stay; top-p keeps the smallest set of best tokens whose
    probability (after top-k, renormalised) reaches top_p, at least one.
    """
    logits = logits / (sampling.temperature if temperatures is None else temperatures[:, None])
    if 0 < sampling.top_k < logits.shape[-1]:
        worst_kept = torch.topk(logits, sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < worst_kept, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = torch.sort(logits, dim=-1, descending=True, stable=True)
        shares = torch.softmax(ordered, dim=-1)
        # A token goes when the better ones already reach top_p; the best has none before it and always stays.
        before = shares.cumsum(dim=-1) - shares
        gone = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        logits = logits.masked_fill(gone, -torch.inf)
    return logits


def draw(
    logits: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    sampling: "SamplingParams",
    temperatures: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token id per row, int64 `[rows]`; `logits` `[rows, vocabulary]`, `seeds` and `positions` int64 `[rows]`.

    `temperatures` is as for `filtered`.
    """
    if not sampling.do_sample:
        return logits.argmax(dim=-1)
    allowed = filtered(logits.double(), sampling, temperatures)
    return (allowed + gumbel(seeds, positions, logits.shape[-1])).argmax(dim=-1)
