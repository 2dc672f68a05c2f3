"""Losses of pairs against TRL, scipy, finite differences and hand arithmetic."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize_scalar
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from cdpo.errors import StepError
from cdpo.pipelines.dpo import DPOParams
from cdpo.train.loss_types import COUPLED, OWN_LOSSES, PROBABILITY, TRL_LOSSES, WITH_MARGIN
from cdpo.train.losses import (
    LOSSES,
    LossOptions,
    Pairs,
    checked_loss,
    chi_squared_worst_case,
    kl_worst_case,
    own_loss,
    per_row_losses,
)

LOGPS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


def draw(rows: int = 64, dtype=torch.float64, seed: int = 0, spread: float = 10.0, **columns) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    logps = {
        name: (-40 + spread * torch.randn(rows, generator=generator, dtype=torch.float64)).to(dtype) for name in LOGPS
    }
    tokens = {name: torch.randint(1, 60, (rows,), generator=generator) for name in ("chosen_tokens", "rejected_tokens")}
    columns.setdefault("bt_prob", torch.rand(rows, generator=generator, dtype=torch.float64).to(dtype))
    return Pairs(**logps, **tokens, **columns)


def with_z(z: torch.Tensor, **columns) -> Pairs:
    """Pairs of a given z; the reference has 0 everywhere."""
    nothing, one = torch.zeros_like(z), torch.ones(len(z), dtype=torch.int64)
    return Pairs(z, nothing, nothing, nothing, one, one, **columns)


def leaves(pairs: Pairs) -> tuple[Pairs, list[torch.Tensor]]:
    """The same with the policy's log-probabilities as leaves of a graph."""
    chosen, rejected = (each.clone().requires_grad_() for each in (pairs.chosen_logps, pairs.rejected_logps))
    return Pairs(**{**vars(pairs), "chosen_logps": chosen, "rejected_logps": rejected}), [chosen, rejected]


# -- against TRL ------------------------------------------------------------------------------------------------------


def trls(kind: str, pairs: Pairs, beta: float, smoothing: float) -> torch.Tensor:
    """TRL's own code on the same numbers, a batch of one row at a time: its loss of each row.

    The model is a stand-in that spreads each log-probability over its tokens; the sum over tokens is what counts.
    """
    found = []
    for at in range(len(pairs.chosen_logps)):
        lengths = [int(pairs.chosen_tokens[at]), int(pairs.rejected_tokens[at])]
        width = max(lengths) + 1
        mask = torch.tensor([[0] + [1] * length + [0] * (width - 1 - length) for length in lengths])
        logps = torch.stack([pairs.chosen_logps[at], pairs.rejected_logps[at]])
        per_token = torch.zeros(2, width - 1, dtype=logps.dtype)
        per_token[:, 0] = logps
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(
                device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value
            ),
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[kind],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=smoothing,
            use_weighting=False,
            _metrics={"train": _Anything()},
            _total_train_tokens=0,
            _tp_size=1,
        )
        inputs = {
            "input_ids": mask,
            "attention_mask": mask,
            "completion_mask": mask,
            "ref_chosen_logps": pairs.ref_chosen_logps[at : at + 1],
            "ref_rejected_logps": pairs.ref_rejected_logps[at : at + 1],
        }
        unused = {name: torch.zeros_like(per_token) for name in ("entropy", "mean_logits")}
        outputs = SimpleNamespace(log_probs=per_token, is_top1=per_token == 0, **unused)
        found.append(TRLDPOTrainer._compute_loss(trainer, lambda outputs=outputs, **_: outputs, inputs, False))
    return torch.stack(found)


def itself(value: torch.Tensor) -> torch.Tensor:
    return value


class _Anything(dict):
    def __missing__(self, name: str) -> list:
        self[name] = []
        return self[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ours", "theirs", "smoothing"),
    [("sigmoid", "sigmoid", 0.0), ("hinge", "hinge", 0.0), ("ipo", "ipo", 0.0), ("rdpo", "robust", 0.2)],
)
def test_those_that_trl_has_are_trls_to_the_bit(ours: str, theirs: str, smoothing: float, dtype) -> None:
    pairs = draw(dtype=dtype)
    made = LOSSES[ours](pairs, LossOptions(0.3, label_smoothing=smoothing))
    wanted = trls(theirs, pairs, 0.3, smoothing)
    assert made.dtype == wanted.dtype == dtype
    assert torch.equal(made, wanted)


def test_the_names_are_those_of_trl_and_of_this_module() -> None:
    assert list(LOSSES) == list(OWN_LOSSES)
    assert not COUPLED - {*TRL_LOSSES, *OWN_LOSSES}
    assert set(OWN_LOSSES) >= PROBABILITY | WITH_MARGIN
    text = DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    assert all(f"'{name}'" in text for name in TRL_LOSSES), "TRL has other losses now"
    assert set(OWN_LOSSES) & set(TRL_LOSSES) == {"sigmoid", "hinge", "ipo"}


# -- the worst cases --------------------------------------------------------------------------------------------------

GRID = [
    (q, nu, z)
    for q in (0.0, 1e-6, 0.01, 0.2, 0.5, 0.7, 0.999, 1.0)
    for nu in (0.0, 1e-8, 1e-3, 0.1, 0.5, 3.0)
    for z in (-7.0, -0.3, 0.0, 0.3, 7.0)
]


def chi_squared(p: float, q: float) -> float:
    return (p - q) ** 2 / (q * (1 - q)) if 0 < q < 1 else (0.0 if p == q else math.inf)


def kl(p: float, q: float) -> float:
    def term(a: float, b: float) -> float:
        # a log(a / b) + b - a, of one sign; the added terms cancel between the two
        return b if a == 0 else math.inf if b == 0 else a * math.log1p((a - b) / b) + b - a

    return term(p, q) + term(1 - p, 1 - q)


def worst(q: float, nu: float, z: float, divergence) -> float:
    """The end of the interval {p: divergence(p, q) <= nu} that maximises p l+ + (1 - p) l-; by root finding."""

    def end(edge: float) -> float:
        if divergence(edge, q) <= nu:
            return edge
        if nu == 0 or divergence(q, q) > nu:
            return q
        return brentq(lambda p: divergence(p, q) - nu, q, edge, xtol=1e-15, rtol=1e-14, maxiter=500)

    plus, minus = math.log1p(math.exp(-z)), math.log1p(math.exp(z))
    ends = [end(0.0), end(1.0)]
    best = max(ends, key=lambda p: p * plus + (1 - p) * minus)
    return q if z == 0 else best


@pytest.mark.parametrize(("solve", "divergence"), [(chi_squared_worst_case, chi_squared), (kl_worst_case, kl)])
def test_the_worst_case_is_the_root_of_the_divergence(solve, divergence) -> None:
    for q, nu, z in GRID:
        made = float(solve(torch.tensor([q], dtype=torch.float64), torch.tensor([z], dtype=torch.float64), nu))
        assert made == pytest.approx(worst(q, nu, z, divergence), abs=2e-12), (q, nu, z)


@pytest.mark.parametrize(("kind", "divergence"), [("chi_squared", chi_squared), ("kl", kl)])
def test_dpo_pro_is_the_largest_expected_loss_in_the_ball(kind: str, divergence) -> None:
    """By brute force: scipy's bounded search over p, with what lies outside of the ball forbidden."""
    for q, nu, z in GRID:
        if q in (0.0, 1.0) or nu < 1e-3:
            continue
        plus, minus = math.log1p(math.exp(-z)), math.log1p(math.exp(z))

        def negative(p: float, q=q, nu=nu, plus=plus, minus=minus) -> float:
            over = max(0.0, divergence(p, q) - nu)
            return -(p * plus + (1 - p) * minus) + 1e4 * over

        search = minimize_scalar(negative, bounds=(0, 1), method="bounded", options={"xatol": 1e-12})
        grid = min(negative(p) for p in np.linspace(0, 1, 2001))
        pairs = with_z(torch.tensor([z], dtype=torch.float64), bt_prob=torch.tensor([q], dtype=torch.float64))
        made = float(LOSSES["dpo_pro"](pairs, LossOptions(1.0, nu=nu, dro_divergence_type=kind)))
        assert made == pytest.approx(-min(search.fun, grid), rel=2e-3), (q, nu, z)
        assert made >= -min(search.fun, grid) - 1e-3


def test_the_two_worst_cases_stay_in_their_interval_and_grow_with_nu() -> None:
    q = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for solve in (chi_squared_worst_case, kl_worst_case):
        low, wide = (solve(q, torch.ones_like(q), nu) for nu in (0.05, 0.5))
        assert bool((wide >= 0).all() and (wide <= low).all() and (low <= q).all())
        torch.testing.assert_close(solve(1 - q, -torch.ones_like(q), 0.05), 1 - low, rtol=0, atol=1e-12)
        assert torch.equal(solve(q, torch.zeros_like(q), 0.3), q), "no direction is worse where z is 0"
        torch.testing.assert_close(solve(q, torch.ones_like(q), 0.0), q, rtol=0, atol=1e-14)


def test_no_ball_is_dpo_pr_and_certainty_is_sigmoid() -> None:
    pairs = draw()
    for kind in ("chi_squared", "kl"):
        options = LossOptions(0.1, nu=0.0, dro_divergence_type=kind)
        torch.testing.assert_close(
            LOSSES["dpo_pro"](pairs, options), LOSSES["dpo_pr"](pairs, options), atol=1e-13, rtol=0
        )
        certain = draw(bt_prob=torch.ones(64, dtype=torch.float64))
        made = LOSSES["dpo_pro"](certain, LossOptions(0.1, nu=0.5, dro_divergence_type=kind))
        torch.testing.assert_close(made, LOSSES["sigmoid"](certain, LossOptions(0.1)))
    with pytest.raises(ValueError, match="chi_squared or kl, not 'tv'"):
        LOSSES["dpo_pro"](pairs, LossOptions(0.1, dro_divergence_type="tv"))


def test_a_million_rows_are_solved_at_once() -> None:
    pairs = draw(10**6, dtype=torch.float32)
    taken = {}
    for kind in ("chi_squared", "kl"):
        began = time.process_time()
        LOSSES["dpo_pro"](pairs, LossOptions(0.1, dro_divergence_type=kind))
        taken[kind] = time.process_time() - began
    # a loop over rows in Python takes at least ten times as long
    assert taken["chi_squared"] < 1
    assert taken["kl"] < 15


# -- gradients --------------------------------------------------------------------------------------------------------

OPTIONS = LossOptions(0.2, label_smoothing=0.1, beta_prime=0.7, nu=0.2)


@pytest.mark.parametrize("divergence", ["chi_squared", "kl"])
@pytest.mark.parametrize("name", OWN_LOSSES)
def test_gradients_are_finite_differences(name: str, divergence: str) -> None:
    """For dpo_pro this is Danskin's theorem: the numbers move p, the graph does not."""
    options = LossOptions(**{**vars(OPTIONS), "dro_divergence_type": divergence})
    margin = torch.linspace(-1, 1, 12, dtype=torch.float64) if name in WITH_MARGIN else None
    pairs, policy = leaves(draw(12, spread=3.0, margin=margin))
    LOSSES[name](pairs, options).sum().backward()
    fixed = [each.detach().clamp(min=0) for each in (pairs.chosen_logratios.mean(), pairs.rejected_logratios.mean())]

    def total(change: torch.Tensor, side: int) -> float:
        moved = [each.detach() + (change if at == side else 0) for at, each in enumerate(policy)]
        there = Pairs(**{**vars(pairs), "chosen_logps": moved[0], "rejected_logps": moved[1]})
        if name == "kto_pair":  # its reference points are held
            chosen = 1 - torch.sigmoid(0.2 * (there.chosen_logratios - fixed[1]))
            return float(((chosen + 1 - torch.sigmoid(0.2 * (fixed[0] - there.rejected_logratios))) / 2).sum())
        return float(LOSSES[name](there, options).sum())

    for side, leaf in enumerate(policy):
        for at in range(12):
            step = torch.zeros(12, dtype=torch.float64)
            step[at] = 1e-5
            slope = (total(step, side) - total(-step, side)) / 2e-5
            assert float(leaf.grad[at]) == pytest.approx(slope, abs=2e-8, rel=1e-6), (side, at)


# -- by hand ----------------------------------------------------------------------------------------------------------


def sigma(h: float) -> float:
    return 1 / (1 + math.exp(-h))


def test_losses_of_probabilities_by_hand() -> None:
    z, q = torch.tensor([2.0, -1.0]).double(), torch.tensor([0.7, 0.4]).double()
    pairs = with_z(z, bt_prob=q)
    plus, minus = (
        [-math.log(sigma(0.5 * each)) for each in (2, -1)],
        [-math.log(sigma(-0.5 * each)) for each in (2, -1)],
    )
    assert LOSSES["dpo_pr"](pairs, LossOptions(0.5)).tolist() == pytest.approx(
        [0.7 * plus[0] + 0.3 * minus[0], 0.4 * plus[1] + 0.6 * minus[1]]
    )
    worst = [0.7 - math.sqrt(0.1 * 0.21), 0.4 + math.sqrt(0.1 * 0.24)]
    assert LOSSES["dpo_pro"](pairs, LossOptions(0.5)).tolist() == pytest.approx(
        [p * a + (1 - p) * b for p, a, b in zip(worst, plus, minus, strict=True)]
    )
    smoothed = LOSSES["label_smoothing"](pairs, LossOptions(0.5, label_smoothing=0.1))
    assert smoothed.tolist() == pytest.approx([0.9 * a + 0.1 * b for a, b in zip(plus, minus, strict=True)])
    squared = LOSSES["generalized_sigmoid"](pairs, LossOptions(0.5))
    assert squared.tolist() == pytest.approx([each - each**2 / 2 for each in plus])


def test_generalized_sigmoid_descends_the_expected_log_likelihood_of_drawn_labels() -> None:
    """Its gradient, averaged over labels drawn with sigmoid(h), is that of -E[log sigmoid] by finite differences."""

    def expected(h: float) -> float:
        return -(sigma(h) * math.log(sigma(h)) + sigma(-h) * math.log(sigma(-h)))

    for h in (-1.5, -0.2, 0.0, 0.8, 2.0):
        slopes = []
        for sign in (1, -1):
            z = torch.tensor([sign * h], dtype=torch.float64, requires_grad=True)
            LOSSES["generalized_sigmoid"](with_z(z), LossOptions(1.0)).sum().backward()
            slopes.append(sign * float(z.grad))
        made = sigma(h) * slopes[0] + sigma(-h) * slopes[1]
        assert made == pytest.approx((expected(h + 1e-5) - expected(h - 1e-5)) / 2e-5, abs=1e-9)


def test_kto_pair_by_hand() -> None:
    chosen, rejected = torch.tensor([1.0, 4.0]).double(), torch.tensor([-2.0, -3.0]).double()
    nothing, one = torch.zeros(2).double(), torch.ones(2, dtype=torch.int64)
    made = LOSSES["kto_pair"](Pairs(chosen, rejected, nothing, nothing, one, one), LossOptions(0.5))
    # the mean log-ratio of the chosen is 2.5; of the rejected -2.5, which counts as 0
    wanted = [
        (1 - sigma(0.5 * (1 - 0)) + 1 - sigma(0.5 * (2.5 + 2))) / 2,
        (1 - sigma(0.5 * (4 - 0)) + 1 - sigma(0.5 * (2.5 + 3))) / 2,
    ]
    assert made.tolist() == pytest.approx(wanted)
    with_graph, policy = leaves(draw(8))
    LOSSES["kto_pair"](with_graph, LossOptions(0.1))[0].backward()
    assert [int((each.grad != 0).sum()) for each in policy] == [1, 1], "the reference point is backpropagated through"


def test_dr_dpo_by_hand_and_in_its_limits() -> None:
    pairs = draw(16)
    rows = LOSSES["sigmoid"](pairs, LossOptions(0.1))
    made = LOSSES["dr_dpo"](pairs, LossOptions(0.1, beta_prime=0.5))
    by_hand = -0.5 * math.log(sum(math.exp(-each / 0.5) for each in rows.tolist()) / 16)
    assert made.shape == (16,)
    assert made.tolist() == pytest.approx([by_hand] * 16)
    flat = LOSSES["dr_dpo"](pairs, LossOptions(0.1, beta_prime=1e7))
    assert float(flat[0]) == pytest.approx(float(rows.mean()), rel=1e-6)
    sharp = LOSSES["dr_dpo"](pairs, LossOptions(0.1, beta_prime=1e-6))
    assert float(sharp[0]) == pytest.approx(float(rows.min()), abs=1e-5)
    assert torch.equal(LOSSES["dr_dpo"](with_z(torch.tensor([0.3])), LossOptions(1.0)).isfinite(), torch.tensor([True]))


def test_a_margin_shifts_the_logit_and_nothing_else() -> None:
    margin = torch.full((64,), 0.4, dtype=torch.float64)
    plain = draw()
    shifted = Pairs(**{**vars(plain), "chosen_logps": plain.chosen_logps - 0.4 / 0.2})
    for name in WITH_MARGIN:
        made = per_row_losses([name], None, draw(margin=margin), OPTIONS)
        torch.testing.assert_close(made, LOSSES[name](shifted, OPTIONS), msg=name)
        assert not torch.equal(made, LOSSES[name](plain, OPTIONS))
    for name in set(OWN_LOSSES) - WITH_MARGIN:
        with pytest.raises(ValueError, match=f"the loss {name} has no margin"):
            per_row_losses([name], None, draw(margin=margin), OPTIONS)


def test_sums_and_what_is_refused() -> None:
    pairs = draw()
    made = per_row_losses(["dpo_pr", "ipo"], [1.0, 0.5], pairs, OPTIONS)
    torch.testing.assert_close(made, LOSSES["dpo_pr"](pairs, OPTIONS) + 0.5 * LOSSES["ipo"](pairs, OPTIONS))
    assert torch.equal(per_row_losses(["sigmoid"], None, pairs, OPTIONS), LOSSES["sigmoid"](pairs, OPTIONS))
    for name in PROBABILITY:
        with pytest.raises(ValueError, match=f"the loss {name} needs bt_prob"):
            per_row_losses([name], None, draw(bt_prob=None), OPTIONS)
    for names, why in ((["sft"], "sft is none of"), ([], "no loss"), (["plugin"], "there is none")):
        with pytest.raises(ValueError, match=why):
            per_row_losses(names, None, pairs, OPTIONS)
    assert LossOptions.of(DPOParams(beta=0.3, learning_rate=1.0)) == LossOptions(0.3)


def test_losses_keep_the_type_of_the_policy_and_survive_its_extremes() -> None:
    far = torch.tensor([-1e4, -90.0, 90.0, 1e4], dtype=torch.float32)
    for name, loss in LOSSES.items():
        pairs, policy = leaves(with_z(far, bt_prob=torch.tensor([0.0, 1.0, 0.3, 1.0], dtype=torch.float64)))
        made = loss(pairs, OPTIONS)
        assert made.dtype == torch.float32
        assert bool(made.isfinite().all()), name
        made.sum().backward()
        assert bool(policy[0].grad.isfinite().all()), name


# -- a user's own -----------------------------------------------------------------------------------------------------

MINE = """\
import torch
def good(pairs, options): return -options.beta * pairs.z
def scalar(pairs, options): return pairs.z.mean()
def column(pairs, options): return pairs.z[:, None]
def number(pairs, options): return 1.0
def whole(pairs, options): return pairs.chosen_tokens
def nan(pairs, options): return pairs.z / torch.tensor([1.0, 0.0], dtype=pairs.z.dtype) * 0
def flat(pairs, options): return pairs.z.detach()
def fails(pairs, options): return pairs.zed
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "my.py").write_text(MINE)

    def load(name: str):
        reference = f"{tmp_path}/my.py:{name}"
        return own_loss(SimpleNamespace(has=lambda role: True, inputs={"loss_plugin": reference}))

    return load


def test_a_loss_of_ones_own(mine) -> None:
    pairs, policy = leaves(draw(2))
    made = per_row_losses(["plugin"], None, pairs, LossOptions(0.5), own=mine("good"))
    torch.testing.assert_close(made, -0.5 * pairs.z)
    made.sum().backward()
    assert policy[0].grad.tolist() == [-0.5, -0.5]
    assert own_loss(SimpleNamespace(has=lambda role: False)) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scalar", r"returned shape \[\], not a value for each of 2 rows"),
        ("column", r"returned shape \[2, 1\]"),
        ("number", "returned float, not a tensor of 2 rows"),
        ("whole", r"returned torch.int64"),
        ("nan", "returned nan for row 1, where z is"),
        ("flat", "returned values without gradient"),
        ("fails", "failed: AttributeError: .*zed"),
    ],
)
def test_what_is_wrong_with_it_is_said_with_its_name(mine, name: str, said: str) -> None:
    pairs, _ = leaves(draw(2))
    with pytest.raises(StepError, match=rf"the loss .*my\.py:{name} {said}"):
        mine(name)(pairs, LossOptions(0.5))


def test_it_needs_no_gradient_where_none_is_asked_for(mine) -> None:
    with torch.no_grad():
        assert mine("flat")(draw(2), LossOptions(0.5)).shape == (2,)
    assert checked_loss(lambda pairs, _: pairs.z, "mine")(draw(2), LossOptions(1.0)).shape == (2,)
