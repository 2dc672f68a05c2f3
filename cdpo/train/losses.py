"""Losses of labelled pairs, a value for every row, as functions of the log-probabilities of policy and reference.

h = beta z - m is the logit of "chosen beats rejected" (z = difference of log-ratios, m = margin or 0), l+ = -log
sigmoid(h), l- = -log sigmoid(-h), q = bt_prob. Nothing here loops over rows. `sigmoid`, `hinge`, `ipo` and `rdpo` are
computed in the order of TRL's `sigmoid`, `hinge`, `ipo` and `robust`, so that they agree with them to the bit.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cdpo.errors import StepError
from cdpo.plugins import said
from cdpo.step import Step
from cdpo.train.loss_types import WITH_MARGIN


@dataclass(frozen=True, eq=False)
class Pairs:
    """A micro-batch of labelled pairs. All tensors have shape [rows]; the policy's carry the graph."""

    #: log-probabilities of whole responses, in nats
    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor
    ref_rejected_logps: Tensor
    #: lengths of the responses, the end token included (int64)
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    #: probability that chosen beats rejected, where the data has it
    bt_prob: Tensor | None = None
    #: what beta z shall exceed, where asked for
    margin: Tensor | None = None

    @property
    def chosen_logratios(self) -> Tensor:
        return self.chosen_logps - self.ref_chosen_logps

    @property
    def rejected_logratios(self) -> Tensor:
        return self.rejected_logps - self.ref_rejected_logps

    @property
    def z(self) -> Tensor:
        return self.chosen_logratios - self.rejected_logratios

    def row(self, at: int) -> "Pairs":
        """One row as a batch of its own."""
        return Pairs(**{name: None if value is None else value[at : at + 1] for name, value in vars(self).items()})


@dataclass(frozen=True)
class LossOptions:
    """The parameters of the losses, under the names that they have in YAML."""

    beta: float
    label_smoothing: float = 0.0
    beta_prime: float = 1.0
    nu: float = 0.1
    #: `chi_squared` or `kl`
    dro_divergence_type: str = "chi_squared"

    @classmethod
    def of(cls, params: Any) -> "LossOptions":
        """From anything that has them as attributes (PreferenceParams, SAILConfig)."""
        return cls(**{name: getattr(params, name) for name in cls.__dataclass_fields__})


Loss = Callable[[Pairs, LossOptions], Tensor]


def per_row_losses(
    names: Sequence[str], weights: Sequence[float] | None, pairs: Pairs, options: LossOptions, own: Loss | None = None
) -> Tensor:
    """The weighted sum of the losses called `names` (weights of 1 where None), a value for every row: [rows].

    `own` is a user's loss, which `plugin` among the names stands for. Raises ValueError for a loss that needs bt_prob
    and has none, and for one that is given a margin and knows none.
    """
    if own is None and "plugin" in names:
        raise ValueError("the loss `plugin` stands for a user's function, and there is none")
    known = LOSSES if own is None else {**LOSSES, "plugin": own}
    total: Tensor | None = None
    for name, weight in zip(names, [1.0] * len(names) if weights is None else weights, strict=True):
        if name not in known:
            raise ValueError(f"{name} is none of the losses that give a value for every row: {', '.join(known)}")
        if pairs.margin is not None and name not in {*WITH_MARGIN, "plugin"}:
            raise ValueError(f"the loss {name} has no margin; those that have: {', '.join(sorted(WITH_MARGIN))}")
        rows = known[name](pairs, options)
        rows = rows if weight == 1 else rows * weight
        total = rows if total is None else total + rows
    if total is None:
        raise ValueError("no loss is named")
    return total


def sigmoid(pairs: Pairs, options: LossOptions) -> Tensor:
    """DPO (arXiv:2305.18290, eq. 7): l+."""
    return -F.logsigmoid(_logit(pairs, options))


def label_smoothing(pairs: Pairs, options: LossOptions) -> Tensor:
    """Conservative DPO: a share e of the labels is taken to be flipped, (1 - e) l+ + e l-."""
    plus, minus = _both(pairs, options)
    return (1 - options.label_smoothing) * plus + options.label_smoothing * minus


def rdpo(pairs: Pairs, options: LossOptions) -> Tensor:
    """Robust DPO (arXiv:2403.00409): ((1 - e) l+ - e l-) / (1 - 2e), unbiased where a share e < 0.5 is flipped."""
    h, e = _logit(pairs, options), options.label_smoothing
    clean = -(1 - e) * F.logsigmoid(h)
    flipped = -e * F.logsigmoid(-h)
    return (clean - flipped) / (1 - 2 * e)


def hinge(pairs: Pairs, options: LossOptions) -> Tensor:
    """SLiC (arXiv:2305.10425): max(0, 1 - beta z)."""
    return torch.relu(1 - options.beta * pairs.z)


def ipo(pairs: Pairs, options: LossOptions) -> Tensor:
    """IPO (arXiv:2310.12036, eq. 17) on log-ratios per token; beta is its tau."""
    chosen = pairs.chosen_logratios / pairs.chosen_tokens.clamp(min=1.0)
    rejected = pairs.rejected_logratios / pairs.rejected_tokens.clamp(min=1.0)
    return (chosen - rejected - 1 / (2 * options.beta)) ** 2


def kto_pair(pairs: Pairs, options: LossOptions) -> Tensor:
    """KTO (arXiv:2402.01306) on pairs: chosen against the mean log-ratio of the rejected half, and the other way round.

    Those means, not below 0, stand for KL(policy || reference), the reference point, through which no gradient flows.
    The rows of a batch share them: it must be the whole global batch.
    """
    chosen, rejected = pairs.chosen_logratios, pairs.rejected_logratios
    chosen_kl, rejected_kl = (each.detach().mean().clamp(min=0) for each in (chosen, rejected))
    desirable = 1 - torch.sigmoid(options.beta * (chosen - rejected_kl))
    undesirable = 1 - torch.sigmoid(options.beta * (chosen_kl - rejected))
    return (desirable + undesirable) / 2


def generalized_sigmoid(pairs: Pairs, options: LossOptions) -> Tensor:
    """l+ - l+^2 / 2: the loss of a label that the policy itself drew, with probability sigmoid(h).

    With F = -l+, the gradient of E[F] over such labels is E[grad F + F grad F]; the square gives its second term (T3).
    Where l+ > 1 the two together push h down.
    """
    plus = sigmoid(pairs, options)
    return plus - 0.5 * plus**2


def dpo_pr(pairs: Pairs, options: LossOptions) -> Tensor:
    """q l+ + (1 - q) l-: the expected loss where chosen beats rejected with probability q."""
    return _expected(_probability(pairs, "dpo_pr"), *_both(pairs, options))


def dpo_pro(pairs: Pairs, options: LossOptions) -> Tensor:
    """max over p of p l+ + (1 - p) l-, with p no further than nu from q in the divergence chosen.

    The maximum depends on h through p too, but p is optimal: its derivative contributes nothing (Danskin 1967).
    """
    q = _probability(pairs, "dpo_pro")
    if options.dro_divergence_type not in WORST_CASES:
        raise ValueError(f"dro_divergence_type is {' or '.join(WORST_CASES)}, not {options.dro_divergence_type!r}")
    h = _logit(pairs, options)
    with torch.no_grad():
        worst = WORST_CASES[options.dro_divergence_type](q.double(), h.double(), options.nu).to(h.dtype)
    return _expected(worst, -F.logsigmoid(h), -F.logsigmoid(-h))


def dr_dpo(pairs: Pairs, options: LossOptions) -> Tensor:
    """Dr. DPO (arXiv:2407.07880): -b' log mean over the batch of exp(-l+ / b'), b' = beta_prime.

    The one value of the batch, for each of its rows; the batch must be the whole global batch.
    """
    scale = options.beta_prime
    rows = sigmoid(pairs, options)
    value = -scale * (torch.logsumexp(-rows / scale, dim=0) - math.log(len(rows)))
    return value.expand(len(rows))


LOSSES: dict[str, Loss] = {
    "sigmoid": sigmoid,
    "label_smoothing": label_smoothing,
    "hinge": hinge,
    "ipo": ipo,
    "kto_pair": kto_pair,
    "generalized_sigmoid": generalized_sigmoid,
    "dpo_pr": dpo_pr,
    "dpo_pro": dpo_pro,
    "dr_dpo": dr_dpo,
    "rdpo": rdpo,
}


# -- the worst case of a probability ----------------------------------------------------------------------------------


def chi_squared_worst_case(q: Tensor, h: Tensor, nu: float) -> Tensor:
    """p with (p - q)^2 / (q (1 - q)) <= nu at which p l+ + (1 - p) l- is largest; q where h is 0. Shapes [rows].

    l+ - l- = -h, so p is as small as it can be where h > 0 and as large where h < 0.
    """
    return (q - h.sign() * (nu * q * (1 - q)).sqrt()).clamp(0, 1)


#: halvings of [0, 1] that leave nothing to find in float64
HALVINGS = 60


def kl_worst_case(q: Tensor, h: Tensor, nu: float) -> Tensor:
    """The same with KL(p || q) <= nu. Between 0 and q the divergence falls as p rises, so its root is bisected."""
    up = h < 0
    start = torch.where(up, 1 - q, q)  # the largest p around q is 1 minus the smallest around 1 - q
    low, high = torch.zeros_like(start), start
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = _bernoulli_kl(middle, start) <= nu
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    settled = (q == 0) | (q == 1) | (h == 0)  # a certain label has no other p within any distance
    return torch.where(settled, q, torch.where(up, 1 - high, high))


WORST_CASES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "chi_squared": chi_squared_worst_case,
    "kl": kl_worst_case,
}


def _bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of two coins, 0 < q < 1, exact to rounding for p near q too (the terms nearly cancel there)."""
    return torch.special.xlog1py(p, (p - q) / q) + torch.special.xlog1py(1 - p, (q - p) / (1 - q))


# -- parts ------------------------------------------------------------------------------------------------------------


def _logit(pairs: Pairs, options: LossOptions) -> Tensor:
    h = options.beta * pairs.z
    return h if pairs.margin is None else h - pairs.margin


def _both(pairs: Pairs, options: LossOptions) -> tuple[Tensor, Tensor]:
    h = _logit(pairs, options)
    return -F.logsigmoid(h), -F.logsigmoid(-h)


def _expected(probability: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    return probability * plus + (1 - probability) * minus


def _probability(pairs: Pairs, loss: str) -> Tensor:
    if pairs.bt_prob is None:
        raise ValueError(
            f"the loss {loss} needs bt_prob, the probability that chosen beats rejected, and the rows have none: "
            "label the data with EVALREWARD_BT or `cdpo label-bt`"
        )
    return pairs.bt_prob.to(pairs.chosen_logps.dtype)


# -- a user's own -----------------------------------------------------------------------------------------------------


def own_loss(step: Step) -> Loss | None:
    """The user's loss of a step, from its input `loss_plugin`; None where it has none."""
    if not step.has("loss_plugin"):
        return None
    from cdpo.plugins import load_plugin

    reference = str(step.inputs["loss_plugin"])
    return checked_loss(load_plugin(reference), reference)


def checked_loss(function: Callable[..., Any], name: str) -> Loss:
    """`fn(pairs: Pairs, options: LossOptions) -> Tensor [rows]` of a user's, whose results are looked at.

    The loss raises StepError that names the function where it fails, or returns anything but a finite floating-point
    number for every row through which the policy can be trained.
    """

    def loss(pairs: Pairs, options: LossOptions) -> Tensor:
        try:
            made = function(pairs, options)
        except (Exception, SystemExit) as error:
            raise StepError(f"the loss {name} failed: {said(error, name)}") from error
        rows = len(pairs.chosen_logps)
        if not torch.is_tensor(made):
            raise StepError(f"the loss {name} returned {type(made).__name__}, not a tensor of {rows} rows")
        if made.shape != (rows,):
            raise StepError(f"the loss {name} returned shape {list(made.shape)}, not a value for each of {rows} rows")
        if not made.is_floating_point():
            raise StepError(f"the loss {name} returned {made.dtype}, not floating-point numbers")
        if not bool(made.isfinite().all()):
            at, z = int((~made.isfinite()).nonzero()[0]), pairs.z.detach()
            raise StepError(
                f"the loss {name} returned {float(made.detach()[at])} for row {at}, where z is {float(z[at])}"
            )
        if torch.is_grad_enabled() and pairs.z.requires_grad and not made.requires_grad:
            raise StepError(f"the loss {name} returned values without gradient: nothing could be learned from them")
        return made

    return loss
