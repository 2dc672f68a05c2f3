"""What a user may write for a training step, and what is refused with a reason."""

import pytest
from cdpo.pipelines.dpo import DPOParams
from cdpo.pipelines.rm import RMParams
from cdpo.pipelines.sail import PIPELINES, MIXParams
from cdpo.pipelines.sft import SFTParams
from pydantic import ValidationError

RATE = {"learning_rate": 1e-5}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"beta": 0.0}, "greater than 0"),
        ({"beta": "0.1"}, "valid number"),
        ({"beta": True}, "valid number"),
        ({"loss_type": "simpo"}, "Input should be 'sigmoid'"),
        ({"loss_type": []}, "at least 1 item"),
        ({"loss_type": ["ipo", "ipo"]}, "names a loss twice"),
        ({"loss_weights": [1.0, 2.0]}, "2 weights for 1 losses"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 weights for 2 losses"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "below 0.5"),
        ({"loss_type": "exo_pair"}, "ends excluded"),
        ({"label_smoothing": 0.1}, "no effect on sigmoid"),
        ({"loss_type": "apo_zero", "f_divergence_type": "js_divergence"}, "not apo_zero"),
        ({"loss_type": ["sigmoid", "sft"], "use_weighting": True}, "sft has no loss of a single pair"),
        ({"loss_type": "aot", "use_weighting": True}, "aot has no loss of a single pair"),
        ({"lora": {"target_modules": ["q_proj", "lm_head"]}}, "lm_head cannot be adapted"),
        ({"lora": {"lora_dropout": 0.1}}, "without dropout"),
        ({"quantization": "nf4"}, "lora: true"),
        ({"early_stopping_patience": 2}, "need eval_steps"),
        ({"ld_alpha": 1.5}, "less than or equal to 1"),
        ({"bata": 0.1}, "Extra inputs"),
    ],
)
def test_wrong_parameters_of_dpo_say_why(wrong, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DPOParams.model_validate({"beta": 0.1, **RATE, **wrong})


def test_right_parameters_of_dpo() -> None:
    assert DPOParams.model_validate({"beta": 1, **RATE}).loss_types == ["sigmoid"]
    several = DPOParams.model_validate({"beta": 0.1, **RATE, "loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]})
    assert several.loss_types == ["sigmoid", "sft"]
    assert DPOParams.model_validate({"beta": 0.1, **RATE, "loss_type": "robust", "label_smoothing": 0.1})


def test_other_stages() -> None:
    assert SFTParams.model_validate(RATE).loss == "completion"
    with pytest.raises(ValidationError, match="'completion' or 'all'"):
        SFTParams.model_validate({**RATE, "loss": "prompt"})
    with pytest.raises(ValidationError, match="without dropout"):
        RMParams.model_validate({**RATE, "lora": {"lora_dropout": 0.1}})


RELEASED = {
    "DDP": {"beta": 0.1, "r": 0.4, "rho": 0.2},
    "DPP": {"beta": 0.1, "p": 0.3, "pi": 0.2},
    "DPR": {"beta": 0.1, "g": 0.3, "gamma": 0.3},
    "DRO_DPR": {"beta": 0.1, "dro": 0.3, "omega": 0.3},
    "DR_DPO": {"beta": 0.1, "beta_prime": 1.0},
    "MIX": {"beta": 0.1, "r": 0.3, "rho": 0.2, "p": 0.3, "pi": 0.2, "g": 0.3, "gamma": 0.3},
}


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda each: each.name)
def test_sails_methods_have_schemas_and_no_code(pipeline) -> None:
    values = RELEASED[pipeline.name]
    assert not pipeline.available
    assert pipeline.method
    assert ("reward" in pipeline.takes) == (pipeline.name in ("DPR", "DRO_DPR", "MIX"))
    pipeline.params.model_validate({**RATE, **values})
    for name in values:
        with pytest.raises(ValidationError, match="Field required"):
            pipeline.params.model_validate({**RATE, **{key: value for key, value in values.items() if key != name}})
    for name in set(values) & {"r", "p", "g", "dro"}:
        with pytest.raises(ValidationError, match="less than 1"):
            pipeline.params.model_validate({**RATE, **values, name: 1.0})


def test_a_mixture_leaves_some_rows_offline() -> None:
    with pytest.raises(ValidationError, match=r"r \+ p \+ g must be below 1"):
        MIXParams.model_validate({**RATE, **RELEASED["MIX"], "r": 0.4})
