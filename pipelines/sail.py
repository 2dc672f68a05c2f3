"""SAIL, self-improving efficient online alignment (arXiv:2406.15567): methods that learn from pairs of their own.

    DDP      SAIL-DP: a share r of the rows is labelled by the policy itself
    DPP      SAIL-PP: a share p of the prompts is answered twice and labelled by the policy
    DPR      SAIL-PR: a share g of the prompts is answered twice by the policy and labelled by a reward model
    DRO_DPR  as DPR, with a share dro, on a distributionally robust base loss
    MIX      DDP, DPP and DPR, each on its share of the rows
    DR_DPO   Dr. DPO (arXiv:2407.07880): all rows offline, on a loss that doubts the labels

A share is the probability with which each row of each epoch takes that route; the rest of the rows is DPO's, and with
shares of 0 so is everything. What a route adds to the loss is weighted by rho, pi, gamma and omega. cdpo/sail/ has the
mathematics. out/ is as DPO's.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cdpo.config.params import Count, NonNegative, Positive
from cdpo.config.preferences import Losses, PreferenceParams, labels_and_losses
from cdpo.pipeline import Pipeline
from cdpo.pipelines.dpo import PIPELINE as DPO
from cdpo.step import Step, run_by_hand

#: the share of rows that take a route
Mixture = Annotated[float, Field(ge=0, lt=1)]
#: shares of rows that learn from responses of the policy, and of those whose label is drawn from it
SAMPLED, SELF_LABELLED = ("p", "g", "dro"), ("r", "p")


class SAILParams(PreferenceParams):
    """What the methods with routes share."""

    stretch_epochs: bool = False
    """Divide num_train_epochs by the share of offline rows, as the released package does: then as many offline rows are
    seen as by DPO, and training is that much longer."""

    def share(self, names: tuple[str, ...]) -> float:
        """The share of rows that take one of the routes whose probabilities are called so."""
        return float(sum(getattr(self, name, 0.0) for name in names))

    @model_validator(mode="after")
    def _epochs_decide(self) -> "SAILParams":
        if self.stretch_epochs and self.max_steps is not None:
            raise ValueError("stretch_epochs lengthens num_train_epochs, and max_steps decides in its place: give one")
        return self

    @model_validator(mode="after")
    def _loss_knows_its_labels(self) -> "SAILParams":
        if problem := labels_and_losses(self.loss_types, self.share(SELF_LABELLED)):
            raise ValueError(problem)
        return self


class OnPolicyParams(SAILParams):
    """How the policy's own responses are drawn, and what is learned from having drawn them."""

    temperature: Positive = 0.9
    """Of the policy's two responses to a prompt; T1 is that of the distribution sampled from."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 keeps the whole vocabulary; anything else biases T1."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """1 keeps the whole vocabulary; anything else biases T1."""
    max_new_tokens: Count = 256
    """Tokens of a response at most, its end token included. A prompt that leaves no room for them is left out."""
    staleness: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps by which the policy that sampled a pair may be older than the one that learns from it. 0 is
    strictly on-policy; with s, responses for s + 1 steps are sampled at once."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """Who samples: the model itself, or vLLM in the same process, whose weights follow the policy's (on one GPU)."""
    baseline: Literal["none", "moving"] = "none"
    """`moving` subtracts a moving mean of F over earlier steps from F in T1, the score-function term."""

    @model_validator(mode="after")
    def _weights_can_follow(self) -> "OnPolicyParams":
        if self.backend == "vllm" and self.quantization is not None:
            raise ValueError("backend: vllm takes whole weights from the policy, and quantization keeps 4 bits of them")
        return self

    @property
    def room(self) -> int:
        """Tokens that must be free behind every prompt of the training split; 0 where nothing is sampled."""
        return self.max_new_tokens if self.share(SAMPLED) else 0


class RewardedParams(OnPolicyParams):
    """How a reward model labels them. It is named by `reward`, as EVALREWARD's is."""

    reward_labels: Literal["hard", "bt"] = "hard"
    """`hard`: the response with the higher reward is the chosen one; `bt`: drawn from Bradley-Terry."""
    bt_temperature: Positive = 1.0
    """P(the first wins) = sigmoid(difference of the rewards / bt_temperature): by which `bt` draws labels, and which a
    loss that reads bt_prob is told."""
    reverse: bool = False
    """True for a cost model, whose high values are bad. The reward's entry in the name table says it."""
    reward_template: str | None = None
    """The reward model's chat template where its tokenizer has none. The reward's entry in the name table says it."""

    @model_validator(mode="after")
    def _labels_fit(self) -> "RewardedParams":
        if self.reward_labels == "hard" and self.bt_temperature != 1.0 and not self.reads_bt_prob:
            raise ValueError("bt_temperature has no effect on hard labels: write `reward_labels: bt` too")
        return self


class DDPParams(SAILParams):
    """SAIL-DP: prompts and responses of the data, labels drawn from the policy on a share of the rows."""

    r: Mixture
    """Share of rows whose label is drawn from the policy's implied preference, sigmoid(beta z)."""
    rho: NonNegative
    """Weight of -1/2 F^2 on them (T3: the label depends on the policy)."""


class DPPParams(OnPolicyParams):
    """SAIL-PP: two responses sampled from the policy and labelled by it, on a share of the rows."""

    p: Mixture
    """Share of rows whose prompt is answered and labelled by the policy."""
    pi: NonNegative
    """Weight of T1 (the responses depend on the policy) and of -1/2 F^2 (T3: so does the label) on them."""


class DPRParams(RewardedParams):
    """SAIL-PR: two responses sampled from the policy, labelled by a reward model, on a share of the rows."""

    g: Mixture
    """Share of rows whose prompt is answered by the policy."""
    gamma: NonNegative
    """Weight of T1 (the responses depend on the policy) on them."""


class DRODPRParams(RewardedParams):
    """SAIL-PR on a distributionally robust base loss."""

    loss_type: Losses = "dpo_pro"
    """The base loss; `dpo_pro` and `dpo_pr` need a bt_prob for every row (EVALREWARD_BT)."""
    dro: Mixture
    """Share of rows whose prompt is answered by the policy and labelled by the reward model."""
    omega: NonNegative
    """Weight of T1 on them."""


class DRDPOParams(PreferenceParams):
    """Dr. DPO: -beta' log mean over the batch of exp(-loss / beta')."""

    loss_type: Literal["dr_dpo"] = "dr_dpo"
    """Its own."""
    beta_prime: Positive
    """Temperature over the rows of a batch; the larger, the closer to DPO."""


class MIXParams(RewardedParams):
    """DDP, DPP and DPR at once, each on its share of the rows; what is left is offline DPO."""

    r: Mixture
    """Share of DDP."""
    rho: NonNegative
    """Weight of DDP's -1/2 F^2."""
    p: Mixture
    """Share of DPP."""
    pi: NonNegative
    """Weight of DPP's T1 and -1/2 F^2."""
    g: Mixture
    """Share of DPR."""
    gamma: NonNegative
    """Weight of DPR's T1."""

    @model_validator(mode="after")
    def _some_rows_stay_offline(self) -> "MIXParams":
        if round(self.r + self.p + self.g, 9) >= 1:  # .7 + .2 + .1 is one, though these floats add up to less
            raise ValueError(
                f"r + p + g must be below 1, and {self.r} + {self.p} + {self.g} = {self.r + self.p + self.g:g}"
            )
        return self


def _method(name: str, params: type[PreferenceParams]) -> Pipeline:
    rewarded = issubclass(params, RewardedParams)
    return Pipeline(
        name=name,
        version=1,
        params=params,
        reads=DPO.reads,
        takes=dict(DPO.takes) | ({"reward": "reward"} if rewarded else {}),
        gives="policy",
        rank=40,
        method=True,
        stage=False,
        metrics=DPO.metrics,
    )


METHODS: dict[str, type[PreferenceParams]] = {
    "DDP": DDPParams,
    "DPP": DPPParams,
    "DPR": DPRParams,
    "DRO_DPR": DRODPRParams,
    "DR_DPO": DRDPOParams,
    "MIX": MIXParams,
}
PIPELINES = [_method(name, params) for name, params in METHODS.items()]


def run(step: Step) -> dict[str, Any]:
    from cdpo.train.preferences import train_preferences

    return train_preferences(step, METHODS[step.pipeline].model_validate(step.params))


if __name__ == "__main__":
    run_by_hand(run)
