"""The options of the losses, the columns and the noise: what may be written together, and what is refused and why."""

import pytest
from pydantic import ValidationError

from cdpo.pipelines.dpo import DPOParams
from cdpo.train.loss_types import OWN_LOSSES, TRL_LOSSES, WITH_MARGIN

SMOOTHED = {"loss_type": "rdpo", "label_smoothing": 0.1}


def params(**given) -> DPOParams:
    return DPOParams.model_validate({"beta": 0.1, "learning_rate": 1e-5, **given})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"loss_type": "rdpo", "label_smoothing": 0.5}, "below 0.5 for the loss `rdpo`"),
        ({"loss_type": "label_smoothing", "label_smoothing": 0.7}, "below 0.5 for the loss `label_smoothing`"),
        ({"loss_type": "label_smoothing"}, "without label_smoothing is `sigmoid`"),
        ({"loss_type": "dpo_pr", "label_smoothing": 0.1}, "no effect on dpo_pr"),
        ({"nu": 0.2}, "nu has no effect on sigmoid; the loss that knows it: dpo_pro"),
        ({"loss_type": "dpo_pr", "dro_divergence_type": "kl"}, "dro_divergence_type has no effect on dpo_pr"),
        ({"loss_type": "dpo_pro", "dro_divergence_type": "tv"}, "'chi_squared' or 'kl'"),
        ({"loss_type": "dpo_pro", "nu": -0.1}, "greater than or equal to 0"),
        ({"loss_type": "dpo_pro", "beta_prime": 2.0}, "beta_prime has no effect on dpo_pro"),
        ({"loss_type": "dr_dpo", "beta_prime": 0.0}, "greater than 0"),
        ({"loss_type": ["dpo_pr", "sft"]}, "cannot be added up"),
        ({"loss_type": ["sigmoid", "plugin"]}, "Input should be 'sigmoid'"),
        ({"loss_type": "dpo_pr", "ld_alpha": 0.5}, "ld_alpha is an option of TRL's losses, which do not serve dpo_pr"),
        ({"loss_type": "dpo_pr", "f_divergence_type": "js_divergence"}, "f_divergence_type is an option of TRL's"),
        ({"loss_type": "plugin", "use_weighting": True}, "do not serve plugin"),
        ({"weight_column": "w", "ld_alpha": 0.5}, "do not serve a column of the data"),
        ({"weight_column": "w", "loss_type": ["sigmoid", "sft"]}, "sft is TRL's, one for the batch"),
        ({"margin_column": "m", "loss_type": "robust", "label_smoothing": 0.1}, "robust is TRL's"),
        ({"weight_column": "w", "loss_type": "dr_dpo"}, "dr_dpo weights the rows of a batch itself"),
        ({"margin_column": "m", "loss_type": ["sigmoid", "ipo"]}, "ipo has no margin"),
        ({"margin_column": "m", "redraw_labels": True}, "margins of the labels as they are"),
        ({"noise_type": "bt_noise_gauss", "noise_level": 1.0}, "which nothing here reads"),
    ],
)
def test_what_is_refused(wrong: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        params(**wrong)


@pytest.mark.parametrize(
    ("right", "per_row", "needs_bt_prob"),
    [
        ({}, False, False),
        ({"loss_type": ["sigmoid", "sft"]}, False, False),
        ({"loss_type": ["sigmoid", "hinge", "ipo"], "f_divergence_type": "js_divergence"}, False, False),
        ({"loss_type": ["sigmoid", "ipo", "dpo_pr"], "loss_weights": [1, 2, 3]}, True, True),
        ({"loss_type": "dpo_pro", "nu": 0.0, "dro_divergence_type": "kl"}, True, True),
        ({"loss_type": "dr_dpo", "beta_prime": 3}, True, False),
        (SMOOTHED, True, False),
        ({**SMOOTHED, "margin_column": "m", "weight_column": "w"}, True, False),
        ({"weight_column": "w"}, True, False),
        ({"redraw_labels": True}, False, True),
        ({"noise_type": "label_switching", "noise_level": 0.1}, False, False),
        ({"loss_type": "dpo_pr", "noise_type": "bt_noise_adv", "noise_level": 0.1}, True, True),
        # whatever a user's own loss may want
        (
            {"loss_type": "plugin", "nu": 0.2, "beta_prime": 2.0, "label_smoothing": 0.6, "margin_column": "m"},
            True,
            False,
        ),
        ({"loss_type": "plugin", "noise_type": "bt_noise_adv", "noise_level": 0.1}, True, True),
    ],
)
def test_what_may_be_written(right: dict, per_row: bool, needs_bt_prob: bool) -> None:
    made = params(**right)
    assert (made.per_row, made.needs_bt_prob) == (per_row, needs_bt_prob)
    assert params(**made.model_dump()) == made, "a step reads back all of its values"


def test_every_loss_has_options_with_which_it_may_be_written() -> None:
    for name in {*TRL_LOSSES, *OWN_LOSSES}:
        smoothing = {"label_smoothing": 0.1} if name in ("rdpo", "label_smoothing", "exo_pair") else {}
        assert params(loss_type=name, **smoothing).loss_types == [name]
        if name in WITH_MARGIN:
            assert params(loss_type=name, margin_column="m", **smoothing)
