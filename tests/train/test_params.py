"""What a user may write for a training step, and what is refused with a reason."""

import pytest
from pydantic import ValidationError

from cdpo.pipelines.dpo import DPOParams
from cdpo.pipelines.rm import RMParams
from cdpo.pipelines.sail import METHODS, PIPELINES, MIXParams
from cdpo.pipelines.sft import SFTParams

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
def test_sails_methods_have_the_released_parameters(pipeline) -> None:
    values = RELEASED[pipeline.name]
    assert pipeline.available
    assert pipeline.method
    assert ("reward" in pipeline.takes) == (pipeline.name in ("DPR", "DRO_DPR", "MIX"))
    pipeline.params.model_validate({**RATE, **values})
    for name in values:
        with pytest.raises(ValidationError, match="Field required"):
            pipeline.params.model_validate({**RATE, **{key: value for key, value in values.items() if key != name}})
    for name in set(values) & {"r", "p", "g", "dro"}:
        with pytest.raises(ValidationError, match="less than 1"):
            pipeline.params.model_validate({**RATE, **values, name: 1.0})
        none = pipeline.params.model_validate({**RATE, **values, name: 0.0})
        assert getattr(none, name) == 0
    for name in set(values) & {"rho", "pi", "gamma", "omega"}:
        with pytest.raises(ValidationError, match="greater than or equal to 0"):
            pipeline.params.model_validate({**RATE, **values, name: -0.1})


def sail(method: str, **changed):
    return METHODS[method].model_validate({**RATE, **RELEASED[method], **changed})


def test_who_samples_needs_room_for_it() -> None:
    room = {name: getattr(sail(name), "room", 0) for name in METHODS}
    assert room == {"DDP": 0, "DPP": 256, "DPR": 256, "DRO_DPR": 256, "DR_DPO": 0, "MIX": 256}
    assert sail("DPP", p=0.0).room == 0
    assert sail("MIX", p=0.0, g=0.0, max_new_tokens=8).room == 0
    assert sail("MIX", p=0.0, max_new_tokens=8).room == 8


def test_defaults_of_sails_methods() -> None:
    mix = sail("MIX")
    sampling = (mix.temperature, mix.top_k, mix.top_p, mix.max_new_tokens, mix.staleness, mix.baseline)
    assert sampling == (0.9, 0, 1.0, 256, 0, "none")
    assert (mix.reward_labels, mix.bt_temperature, mix.stretch_epochs) == ("hard", 1.0, False)
    losses = {name: sail(name).loss_types for name in METHODS}
    assert losses == {**{name: ["sigmoid"] for name in METHODS}, "DRO_DPR": ["dpo_pro"], "DR_DPO": ["dr_dpo"]}
    assert sail("DRO_DPR").needs_bt_prob
    assert not sail("DRO_DPR", loss_type="sigmoid").needs_bt_prob


@pytest.mark.parametrize(
    ("method", "wrong", "said"),
    [
        ("DDP", {"stretch_epochs": True, "max_steps": 5}, "stretch_epochs lengthens num_train_epochs"),
        ("DDP", {"temperature": 0.9}, "Extra inputs"),
        ("DDP", {"reward_labels": "hard"}, "Extra inputs"),
        ("DPP", {"reward_labels": "hard"}, "Extra inputs"),
        ("DR_DPO", {"stretch_epochs": True}, "Extra inputs"),
        ("DR_DPO", {"loss_type": "sigmoid"}, "'dr_dpo'"),
        ("DPP", {"temperature": 0.0}, "greater than 0"),
        ("DPP", {"staleness": -1}, "greater than or equal to 0"),
        ("DPP", {"max_new_tokens": 0}, "greater than or equal to 1"),
        ("DPP", {"loss_type": "sft"}, "which response is chosen is drawn"),
        ("DPP", {"baseline": "mean"}, "'none' or 'moving'"),
        ("DPR", {"bt_temperature": 2.0}, "has no effect on hard labels"),
        ("DPR", {"lora": {"lora_dropout": 0.1}}, "without dropout"),
        ("DPR", {"lora": {"target_modules": ["lm_head"]}}, "lm_head cannot be adapted"),
        ("DPR", {"nu": 0.2}, "nu has no effect on sigmoid"),
    ],
)
def test_what_sails_methods_refuse(method: str, wrong: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        sail(method, **wrong)


def test_right_parameters_of_sails_methods() -> None:
    assert sail("DDP", stretch_epochs=True, num_train_epochs=2.0).stretch_epochs
    assert sail("DPR", reward_labels="bt", bt_temperature=2.0).bt_temperature == 2
    assert sail("DPR", loss_type=["sigmoid", "sft"]).loss_types == ["sigmoid", "sft"]
    assert sail("DRO_DPR", nu=0.2, dro_divergence_type="kl").nu == 0.2


def test_a_mixture_leaves_some_rows_offline() -> None:
    with pytest.raises(ValidationError, match=r"r \+ p \+ g must be below 1"):
        MIXParams.model_validate({**RATE, **RELEASED["MIX"], "r": 0.4})
