"""SAILConfig: DPOConfig with the routes, how responses are sampled and labelled, and the losses that TRL has not."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from trl.trainer.dpo_config import DPOConfig

from cdpo.config.params import Params, SamplingParams, TrainingParams
from cdpo.config.preferences import PreferenceParams, labels_and_losses
from cdpo.config.validation import sentence
from cdpo.sail.routes import Mixture, is_number
from cdpo.train.loss_types import TRL_LOSSES


@dataclass
class SAILConfig(DPOConfig):  # type: ignore[misc]
    """Arguments of SAILTrainer. What is not listed here is DPOConfig's, and so are all defaults of its arguments.

    With r = p = g = dro = 0, the default, loss and gradient of a batch are those of TRL's DPO to the bit. See
    cdpo/sail/routes.py for the routes.
    """

    r: float = field(default=0.0, metadata={"help": "DDP: share of rows whose label is drawn from the policy."})
    rho: float = field(default=0.2, metadata={"help": "DDP: weight of -1/2 F^2."})
    p: float = field(default=0.0, metadata={"help": "DPP: share of rows with responses and labels of the policy."})
    pi: float = field(default=0.2, metadata={"help": "DPP: weight of the score-function term and of -1/2 F^2."})
    g: float = field(default=0.0, metadata={"help": "DPR: share of rows with responses of the policy, rated."})
    gamma: float = field(default=0.3, metadata={"help": "DPR: weight of the score-function term."})
    dro: float = field(default=0.0, metadata={"help": "DRO_DPR: as g, for a distributionally robust base loss."})
    omega: float = field(default=0.3, metadata={"help": "DRO_DPR: weight of the score-function term."})
    baseline: str = field(
        default="none",
        metadata={
            "help": "`moving`: subtract a moving mean of F over earlier steps from F in the score-function term."
        },
    )
    staleness: int = field(
        default=0,
        metadata={
            "help": "Optimiser steps that may lie between sampling a pair and training on it. 0: strictly on-policy. "
            "With s > 0 responses for s + 1 global batches are sampled at once."
        },
    )
    stretch_epochs: bool = field(
        default=False,
        metadata={
            "help": "Divide the epochs by the share of offline rows, so that as many of them are seen as by DPO."
        },
    )
    temperature: float = field(default=0.9, metadata={"help": "Of the policy's responses."})
    top_k: int = field(default=0, metadata={"help": "0 keeps the whole vocabulary; anything else biases T1."})
    top_p: float = field(default=1.0, metadata={"help": "1 keeps the whole vocabulary; anything else biases T1."})
    max_new_tokens: int = field(default=256, metadata={"help": "Most tokens of a response, its end token included."})
    generation_batch_size: int = field(default=64, metadata={"help": "Responses sampled at once on one device."})
    backend: str = field(
        default="transformers",
        metadata={
            "help": "Who samples: `transformers`, the model itself; `vllm`, in the same process, on a GPU, with the "
            "policy's weights put in place each time."
        },
    )
    vllm_options: dict[str, Any] | None = field(
        default=None, metadata={"help": "Arguments of vLLM's engine; by default it takes 0.3 of the GPU's memory."}
    )
    reward_labels: str = field(
        default="hard", metadata={"help": "`hard`: the better response wins; `bt`: drawn from Bradley-Terry."}
    )
    bt_temperature: float = field(default=1.0, metadata={"help": "P(first wins) = sigmoid(reward difference / this)."})
    nu: float = field(default=0.1, metadata={"help": "`dpo_pro`: radius of the ball around bt_prob."})
    dro_divergence_type: str = field(default="chi_squared", metadata={"help": "`dpo_pro`: chi_squared or kl."})
    beta_prime: float = field(default=1.0, metadata={"help": "`dr_dpo`: temperature over the rows of a batch."})
    weight_column: str | None = field(
        default=None, metadata={"help": "Column of the data that weights each row's own pair."}
    )
    margin_column: str | None = field(default=None, metadata={"help": "Column of the data with each row's margin."})

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_as(PreferenceParams, self, learning_rate=1.0)
        _check_as(SamplingParams, self)
        mixture = self.mixture()
        _one_of("baseline", self.baseline, ("none", "moving"))
        _one_of("backend", self.backend, ("transformers", "vllm"))
        _one_of("reward_labels", self.reward_labels, ("hard", "bt"))
        for name, least in (("staleness", 0), ("generation_batch_size", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} is a whole number of {least} or more, not {value!r}")
        if not is_number(self.bt_temperature) or not self.bt_temperature > 0:
            raise ValueError(f"bt_temperature must be a number above 0, not {self.bt_temperature!r}")
        if self.stretch_epochs and self.max_steps > 0:
            raise ValueError("stretch_epochs lengthens num_train_epochs, which max_steps overrides: give one of them")
        if self.dataloader_drop_last or self.train_sampling_strategy != "random":
            raise ValueError(
                "every row is trained on in each epoch, in an order of the seed's: leave dataloader_drop_last and "
                "train_sampling_strategy at their defaults"
            )
        if self.restore_callback_states_from_checkpoint:
            raise ValueError("restore_callback_states_from_checkpoint: a resumed SAILTrainer restores its own state")
        others = set(self.loss_type) - set(TRL_LOSSES) or self.weight_column or self.margin_column
        if mixture.total or others:
            refuse_other_preferences(self)
        if mixture.total:
            _refuse_other_objectives(self)

    def mixture(self) -> Mixture:
        return Mixture(**{name: getattr(self, name) for name in Mixture.__dataclass_fields__})


def _check_as(schema: type[Params], config: SAILConfig, **others: Any) -> None:
    """Hold the arguments against the rules that the same names have in tasks.yaml; raises ValueError."""
    names = [name for name in schema.model_fields if hasattr(config, name) and name not in TrainingParams.model_fields]
    values = {name: getattr(config, name) for name in names} | others
    if len(values.get("loss_type", ())) == 1:  # DPOConfig makes a list of it
        values["loss_type"] = values["loss_type"][0]
    try:
        schema.model_validate(values)
    except ValidationError as error:
        said = [
            ": ".join([*map(str, each["loc"][:1]), sentence(each["msg"], each["input"])]) for each in error.errors()
        ]
        raise ValueError("; ".join(said)) from None


def refuse_other_preferences(config: SAILConfig) -> None:
    """Raise ValueError for options of DPO that change what a pair's preference is, which TRL's own loss alone heeds."""
    for name, usual in (("f_divergence_type", "reverse_kl"), ("ld_alpha", None), ("use_weighting", False)):
        if getattr(config, name) != usual:
            raise ValueError(
                f"{name}={getattr(config, name)!r} changes what a pair's preference is; SAIL's terms, losses that are "
                f"not TRL's and columns of weights or margins are made for {usual!r}: leave it, or leave them"
            )


def _refuse_other_objectives(config: SAILConfig) -> None:
    """Raise ValueError for what SAIL's terms are not derived for."""
    if config.sync_ref_model:
        raise ValueError("sync_ref_model moves the reference, which SAIL's objective holds fixed")
    if problem := labels_and_losses(config.loss_type, config.r + config.p):
        raise ValueError(problem)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {' or '.join(map(repr, known))}, not {value!r}")
