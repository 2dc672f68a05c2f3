"""SAIL's methods (online preference optimisation on self-generated pairs): their parameters, ahead of their code.

This release plans them as `unavailable`, so that a tasks file that names them can be checked and shown as a whole; the
code comes in a later release. Names are the released ones: r, p, g and dro are the shares of rows whose labels (r) or
responses (p, g, dro) come from the policy; rho, pi, gamma and omega weight the terms that this adds to the loss.
"""

from typing import Annotated

from pydantic import Field, model_validator

from cdpo.config.params import NonNegative, Params, Positive, TrainingParams
from cdpo.pipeline import Pipeline

#: the share of rows that take a route
Mixture = Annotated[float, Field(ge=0, lt=1)]


class _Method(TrainingParams):
    beta: Positive
    """How closely the policy is held to the reference."""


class DDPParams(_Method):
    """SAIL-DP: prompts and responses of the data, labels drawn from the policy."""

    r: Mixture
    """Share of rows whose label is drawn from the policy's implied preference."""
    rho: NonNegative
    """Weight of the term that this adds."""


class DPPParams(_Method):
    """SAIL-PP: two responses sampled from the policy, labels drawn from the policy."""

    p: Mixture
    """Share of rows whose responses are sampled."""
    pi: NonNegative
    """Weight of the terms that this adds."""


class DPRParams(_Method):
    """SAIL-PR: two responses sampled from the policy, labels from a reward model."""

    g: Mixture
    """Share of rows whose responses are sampled."""
    gamma: NonNegative
    """Weight of the term that this adds."""


class DRODPRParams(_Method):
    """SAIL-PR on a distributionally robust base loss."""

    dro: Mixture
    """Share of rows whose responses are sampled."""
    omega: NonNegative
    """Weight of the term that this adds."""


class DRDPOParams(_Method):
    """Dr. DPO (arXiv:2407.07880): -beta' log mean over the batch of exp(-loss / beta')."""

    beta_prime: Positive
    """Temperature over the rows of a batch."""


class MIXParams(_Method):
    """DDP, DPP and DPR at once, each on its share of the rows; what is left is offline DPO."""

    r: Mixture
    """Share of DDP."""
    rho: NonNegative
    """Weight of DDP's term."""
    p: Mixture
    """Share of DPP."""
    pi: NonNegative
    """Weight of DPP's terms."""
    g: Mixture
    """Share of DPR."""
    gamma: NonNegative
    """Weight of DPR's term."""

    @model_validator(mode="after")
    def _some_rows_stay_offline(self) -> "MIXParams":
        if self.r + self.p + self.g >= 1:
            raise ValueError(
                f"r + p + g must be below 1, and {self.r} + {self.p} + {self.g} = {self.r + self.p + self.g:g}"
            )
        return self


def _method(name: str, params: type[Params], reward: bool = False) -> Pipeline:
    takes = {"data": "data", "model": "policy"} | ({"reward": "reward"} if reward else {})
    return Pipeline(
        name=name,
        version=1,
        params=params,
        takes=takes,
        gives="policy",
        rank=40,
        method=True,
        stage=False,
        available=False,
    )


PIPELINES = [
    _method("DDP", DDPParams),
    _method("DPP", DPPParams),
    _method("DPR", DPRParams, reward=True),
    _method("DRO_DPR", DRODPRParams, reward=True),
    _method("DR_DPO", DRDPOParams),
    _method("MIX", MIXParams, reward=True),
]
