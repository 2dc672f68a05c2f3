"""Parameters of the methods that learn from pairs: the loss and its options, the columns it reads, label noise."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from cdpo.config.params import Count, Fraction, LabelNoiseParams, NonNegative, Params, Positive, TrainingParams
from cdpo.train.loss_types import BELOW_HALF, OWN_LOSSES, PROBABILITY, SMOOTHED, TRL_LOSSES, WITH_MARGIN, LossType

#: `loss_type` of a step whose loss is a user's own function, which is its input `loss_plugin`
PLUGIN = "plugin"
#: one loss, or several that are added up
Losses = Annotated[
    Annotated[Literal[LossType, "plugin"], Tag("one")] | Annotated[list[LossType], Field(min_length=1), Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list) else "one"),
]


class FirstRows(Params):
    """The rows of the training split that `max_steps` optimiser steps see, where that is within the first epoch."""

    rows: Count
    room: Annotated[int, Field(ge=0)] = 0
    """Tokens that must be free behind a prompt: rows without them are not counted."""


class PreferenceParams(LabelNoiseParams, TrainingParams):
    """What DPO and SAIL's methods share."""

    beta: Positive
    """How closely the policy is held to the reference; for `ipo` its tau."""
    loss_type: Losses = "sigmoid"
    """One loss of TRL's or of cdpo's own, several that are added up, or a user's function: `./my.py:my_loss`."""
    loss_weights: list[NonNegative] | None = None
    """One weight for each loss of a list; 1 each by default."""
    label_smoothing: Fraction = 0.0
    """`robust`, `rdpo`, `label_smoothing`: the share of preferences taken to be flipped, below 0.5; `exo_pair`: its
    epsilon, above 0."""
    nu: NonNegative = 0.1
    """`dpo_pro`: the radius of the ball around bt_prob in which the worst case is sought."""
    dro_divergence_type: Literal["chi_squared", "kl"] = "chi_squared"
    """`dpo_pro`: what that radius is measured in."""
    beta_prime: Positive = 1.0
    """`dr_dpo`: the temperature over the rows of a batch (arXiv:2407.07880); the larger, the closer to the mean."""
    weight_column: str | None = None
    """A numeric column of the data, 0 or above, by which the loss of each row is multiplied. Pairs of the policy's own
    have a weight of 1."""
    margin_column: str | None = None
    """A numeric column of the data by which beta z must exceed 0 (ODPO, arXiv:2402.10571)."""

    @property
    def loss_types(self) -> list[str]:
        return [self.loss_type] if isinstance(self.loss_type, str) else list(self.loss_type)

    @property
    def trains_adapter(self) -> bool:
        """Whether the weights of the policy stay as they are, beneath an adapter."""
        return self.lora is not None

    @property
    def first_rows(self) -> dict[str, int] | None:
        """What `max_steps` makes of the rows, as FirstRows; None where epochs are counted."""
        if self.max_steps is None:
            return None
        return {"rows": self.max_steps * self.batch_size, "room": getattr(self, "room", 0)}

    @property
    def per_row(self) -> bool:
        """Whether only losses of a row can serve: cdpo's own or a user's, not those that TRL alone has."""
        return self.weight_column is not None or self.margin_column is not None or not set(self.loss_types) <= _TRL

    @property
    def reads_bt_prob(self) -> bool:
        """Whether the loss looks at bt_prob; a user's own may."""
        return bool({*PROBABILITY, PLUGIN} & set(self.loss_types))

    @property
    def needs_bt_prob(self) -> bool:
        return super().needs_bt_prob or bool(PROBABILITY & set(self.loss_types))

    @model_validator(mode="after")
    def _losses_fit(self) -> "PreferenceParams":
        kinds = self.loss_types
        if len(set(kinds)) != len(kinds):
            raise ValueError("loss_type names a loss twice")
        if self.loss_weights is not None and len(self.loss_weights) != len(kinds):
            raise ValueError(f"loss_weights has {len(self.loss_weights)} weights for {len(kinds)} losses of loss_type")
        theirs = [kind for kind in kinds if kind in _TRL_ONLY]
        own = [kind for kind in kinds if kind not in _TRL]
        if theirs and own:
            raise ValueError(
                f"{', '.join(own)} gives a loss for every row and {', '.join(theirs)}, TRL's, one for the batch: they "
                f"cannot be added up. What can be: {', '.join(OWN_LOSSES)}"
            )
        return self

    @model_validator(mode="after")
    def _smoothing_fits(self) -> "PreferenceParams":
        kinds, smoothing = set(self.loss_types), self.label_smoothing
        if smoothing >= 0.5 and (strict := sorted(kinds & BELOW_HALF)):
            raise ValueError(
                f"label_smoothing must be below 0.5 for the loss `{strict[0]}`: at 0.5 the labels say nothing"
            )
        if "exo_pair" in kinds and smoothing in (0.0, 1.0):
            raise ValueError("label_smoothing must be between 0 and 1, ends excluded, for `exo_pair` (its paper: 1e-3)")
        if not smoothing and (smoothed := sorted(kinds & {"label_smoothing", "rdpo"})):
            raise ValueError(f"{smoothed[0]} without label_smoothing is `sigmoid`: give label_smoothing, 0.1 say")
        if smoothing and not kinds & {*SMOOTHED, PLUGIN}:
            raise ValueError(
                f"label_smoothing has no effect on {', '.join(self.loss_types)}; "
                f"the losses that know it: {', '.join(sorted(SMOOTHED))}"
            )
        return self

    @model_validator(mode="after")
    def _robustness_fits(self) -> "PreferenceParams":
        for name, loss in (("nu", "dpo_pro"), ("dro_divergence_type", "dpo_pro"), ("beta_prime", "dr_dpo")):
            changed = getattr(self, name) != PreferenceParams.model_fields[name].default
            if changed and not {loss, PLUGIN} & set(self.loss_types):
                raise ValueError(
                    f"{name} has no effect on {', '.join(self.loss_types)}; the loss that knows it: {loss}"
                )
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> "PreferenceParams":
        if self.lora is not None:
            named = self.lora.target_modules
            if "lm_head" in ([named] if isinstance(named, str) else named):
                raise ValueError(
                    "lora target_modules: lm_head cannot be adapted: log-probabilities are taken from its weight"
                )
            if self.lora.lora_dropout:
                raise ValueError(
                    "pairs are trained on without dropout, which would blur policy against reference: lora_dropout 0"
                )
        return self

    @model_validator(mode="after")
    def _columns_fit(self) -> "PreferenceParams":
        kinds = self.loss_types
        for name in ("weight_column", "margin_column"):
            theirs = [kind for kind in kinds if kind in _TRL_ONLY]
            if getattr(self, name) is not None and theirs:
                raise ValueError(
                    f"{name} needs a loss for every row, and {theirs[0]} is TRL's, one for the batch; "
                    f"those that give one: {', '.join(OWN_LOSSES)}"
                )
        if self.weight_column is not None and "dr_dpo" in kinds:
            raise ValueError("weight_column: dr_dpo weights the rows of a batch itself")
        if self.margin_column is not None and self.redraw_labels:
            raise ValueError(
                "margin_column holds the margins of the labels as they are; redraw_labels draws other ones"
            )
        without = [kind for kind in kinds if kind not in {*WITH_MARGIN, PLUGIN}]
        if self.margin_column is not None and without:
            raise ValueError(
                f"margin_column: {without[0]} has no margin; the losses that have: {', '.join(sorted(WITH_MARGIN))}"
            )
        return self


def labels_and_losses(kinds: Sequence[str], self_labelled: float) -> str | None:
    """What is wrong with these losses where a share of the rows takes its labels from the policy; None: nothing."""
    if not self_labelled:
        return None
    if "sft" in kinds:
        return (
            "loss_type sft is a mean over the tokens of chosen responses, and with r or p which response is chosen is "
            "drawn as the loss is taken: leave it out"
        )
    if "generalized_sigmoid" in kinds:
        return "generalized_sigmoid has the term that r and p add (-1/2 F^2) in itself: with them it is `sigmoid`"
    return None


_TRL = frozenset(TRL_LOSSES)
_TRL_ONLY = _TRL - set(OWN_LOSSES)
