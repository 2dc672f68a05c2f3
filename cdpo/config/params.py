"""The base of all parameter schemas, and the groups of parameters that several pipelines share.

Names are transformers', peft's and TRL's own. A value equal to the default written here is left out of a step's key,
so a field may be added without renaming what is finished; a changed default must raise the pipeline's `version`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
#: a probability or a share; both ends allowed
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Attention = Literal["eager", "sdpa", "flash_attention_2"]


class Params(BaseModel):
    """Frozen, closed and strict: an unknown key, a NaN, a boolean or a string in place of a number is refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class LoraParams(Params):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), under peft's names."""

    r: Count = 16
    """Rank of the update."""
    lora_alpha: Positive = 32.0
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter; `configs/models/lora_modules.yaml` gives them by model where none are written."""


class ModelLoading(Params):
    """How the weights of a model are read; shared by everything that runs one."""

    dtype: Dtype = "auto"
    """`auto`: what the checkpoint was stored in. `bf16` and `fp16` compute in that type."""
    attn_implementation: Attention = "sdpa"
    template: str | None = None
    """A chat template of cdpo's own by name (`plain`, `inst`, or `raw`: the text as it is) in place of the tokenizer's;
    usually set with the model, in `configs/models/names.yaml`."""


class TrainingParams(ModelLoading):
    """What every training step shares. `configs/pipelines/optim.yaml` gives learning rate and epochs where a task
    does not."""

    learning_rate: Positive
    num_train_epochs: Positive = 1.0
    max_steps: Count | None = None
    """Optimiser steps; when given it decides in place of num_train_epochs."""
    batch_size: Count = 32
    """Rows of one optimiser step, over all devices; micro-batch and accumulation are derived from devices.yaml."""
    max_length: Count | None = None
    """Tokens of prompt and response together; a longer row is dropped and counted, never cut. Default: the model's
    context."""
    optim: Literal["adamw_torch", "rmsprop", "sgd", "adafactor"] = "adamw_torch"
    weight_decay: NonNegative = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    max_grad_norm: NonNegative = 1.0
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the optimiser steps over which the learning rate rises from 0."""
    lora: LoraParams | None = None
    """Train an adapter in place of all weights. `lora: true` takes the defaults."""
    quantization: Literal["nf4"] | None = None
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314): frozen weights in 4 bits; needs lora, bitsandbytes and a GPU."""
    limit: Count | None = None
    """Train on so many rows of the training split, drawn with the step's seed."""
    eval_steps: Count | None = None
    """Evaluate on `tune` every so many optimiser steps."""
    early_stopping_patience: Count | None = None
    """Stop after so many evaluations without improvement; needs eval_steps."""
    load_best_model_at_end: bool = False
    """Keep the checkpoint that was best on `tune`, not the last; needs eval_steps."""
    max_dropped: Fraction = 0.05
    """The share of rows that may be unusable for this model (longer than max_length) before the step is refused."""

    @field_validator("lora", mode="before")
    @classmethod
    def _lora_by_word(cls, value: Any) -> Any:
        if isinstance(value, str | int | float | list) and not isinstance(value, bool):
            raise ValueError(f"lora is true, false or a mapping of {', '.join(LoraParams.model_fields)}")
        return {} if value is True else None if value is False else value

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingParams":
        if self.quantization and self.lora is None:
            raise ValueError("quantization trains an adapter over frozen 4-bit weights: write `lora: true` too")
        if self.eval_steps is None and (self.early_stopping_patience or self.load_best_model_at_end):
            raise ValueError("early_stopping_patience and load_best_model_at_end need eval_steps")
        return self


class LabelNoiseParams(Params):
    """Noise on the labels of the training split, the same for all methods that train on it with one seed."""

    noise_type: Literal["bt_noise_gauss", "bt_noise_adv", "bt_noise_flip", "label_switching"] | None = None
    """`bt_noise_*` change bt_prob p: sigmoid(logit(p) + N(0, level)); p - level U(0, 1) sign(p - 0.5), cut to [0, 1];
    1 - p with probability `level`. `label_switching` swaps chosen and rejected with probability `level`."""
    noise_level: NonNegative | None = None
    """How strong the noise is."""
    redraw_labels: bool = False
    """Draw anew which response is the chosen one: the one that is now with probability bt_prob, after the noise."""

    @property
    def reads_bt_prob(self) -> bool:
        """Whether what is trained looks at bt_prob."""
        return False

    @property
    def needs_bt_prob(self) -> bool:
        """Whether the training data must have a column bt_prob."""
        return self.redraw_labels or (self.noise_type or "").startswith("bt_noise_")

    @model_validator(mode="after")
    def _noise_fits(self) -> "LabelNoiseParams":
        if (self.noise_type is None) != (self.noise_level is None):
            raise ValueError("noise_type and noise_level are given together: which noise, and how much of it")
        if self.noise_type in ("bt_noise_flip", "label_switching") and (self.noise_level or 0) > 1:
            raise ValueError(f"noise_level is a probability for {self.noise_type}: at most 1, not {self.noise_level}")
        if (self.noise_type or "").startswith("bt_noise_") and not (self.redraw_labels or self.reads_bt_prob):
            raise ValueError(
                f"{self.noise_type} changes bt_prob, which nothing here reads: redraw the labels from it "
                "(redraw_labels: true), or train with a loss of probabilities (dpo_pr, dpo_pro)"
            )
        return self


class SamplingParams(Params):
    """How responses are drawn from a policy."""

    do_sample: bool = True
    """False: greedy decoding; temperature, top_k and top_p are then refused unless left at their defaults."""
    temperature: Positive = 1.0
    """Above 0; greedy decoding is `do_sample: false`."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """0 keeps the whole vocabulary."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Count = 256

    @model_validator(mode="after")
    def _greedy_has_no_temperature(self) -> "SamplingParams":
        if not self.do_sample and (self.temperature != 1.0 or self.top_k != 0 or self.top_p != 1.0):
            raise ValueError("temperature, top_k and top_p say how to sample, and do_sample is false")
        return self
