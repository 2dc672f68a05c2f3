"""DPO: direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) and TRL's other offline losses.

The reference is the policy as it comes in. out/: the model or, with `lora`, one adapter on the same base; the
tokenizer; and scores.parquet: `split, prompt_id, loss, rewards/chosen, rewards/rejected, rewards/accuracies,
rewards/margins, logps/chosen, logps/rejected` for every row of `eval` and `tune`. Each row is scored as a batch of its
own: so a loss that compares rows with each other (`aot`) is the loss of a batch of one there.
"""

from typing import Any, Literal

from pydantic import model_validator

from cdpo.config.params import Fraction, Positive
from cdpo.config.preferences import PreferenceParams
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand
from cdpo.train.loss_types import TRL_LOSSES

#: losses built on the difference of the two rewards, the only ones that an f-divergence other than reverse KL can serve
DIFFERENCE = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
#: options that only TRL's own computation of a loss has
TRLS = ("f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting", "discopop_tau")


class DPOParams(PreferenceParams):
    """DPO with TRL's stable losses and with cdpo's own; the options below are TRL's."""

    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """What holds the policy to the reference (f-DPO, arXiv:2309.16240)."""
    f_alpha_divergence_coef: float = 0.5
    """The alpha of `alpha_divergence`."""
    ld_alpha: Fraction | None = None
    """Weight of the tokens beyond the length that both responses share (LD-DPO, arXiv:2409.06411); 1 by default."""
    use_weighting: bool = False
    """Weight pairs by how likely they are under the policy (WPO, arXiv:2406.11827)."""
    discopop_tau: Positive = 0.05
    """Temperature of `discopop`."""

    @model_validator(mode="after")
    def _options_fit(self) -> "DPOParams":
        kinds = set(self.loss_types)
        if self.per_row and (given := [name for name in TRLS if getattr(self, name) != _default(name)]):
            why = "a column of the data" if kinds <= set(TRL_LOSSES) else ", ".join(sorted(kinds - set(TRL_LOSSES)))
            raise ValueError(f"{given[0]} is an option of TRL's losses, which do not serve {why}")
        if self.f_divergence_type != "reverse_kl" and not kinds <= DIFFERENCE:
            raise ValueError(
                f"f_divergence_type {self.f_divergence_type} serves only {', '.join(sorted(DIFFERENCE))}, "
                f"not {', '.join(sorted(kinds - DIFFERENCE))}"
            )
        if self.use_weighting and (coupled := sorted(kinds & {"aot", "aot_unpaired", "sft"})):
            raise ValueError(f"use_weighting weights pairs, and {', '.join(coupled)} has no loss of a single pair")
        return self


def _default(name: str) -> Any:
    return DPOParams.model_fields[name].default


PIPELINE = Pipeline(
    name="DPO",
    version=1,
    params=DPOParams,
    takes={"data": "data", "model": "policy", "reference": "reference"},
    reads=("chosen", "rejected"),
    gives="policy",
    rank=40,
    method=True,
    metrics={
        name: name
        for name in (
            "loss",
            "rewards/accuracies",
            "rewards/margins",
            "rewards/chosen",
            "rewards/rejected",
            "logps/chosen",
            "logps/rejected",
        )
    },
)


def run(step: Step) -> dict[str, Any]:
    from cdpo.train.preferences import train_preferences

    return train_preferences(step, DPOParams.model_validate(step.params))


if __name__ == "__main__":
    run_by_hand(run)
