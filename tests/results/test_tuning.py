"""Places of a grid, from rows made by hand."""

import pytest

from cdpo.report.overview import Cell, Row, axes, run_rows
from cdpo.report.tuning import grid, parameters, values_of


def row(mean, runs, method="DPO", **params):
    setup = {"method": method, "model": "m", "dataset": "d", "tag": "t"}
    cells = {"reward/mean": Cell(mean, mean - 1, mean + 1, 60, runs, "eval", "")}
    return Row(setup, params, [0], "done", [], "t/x", ["t/x"], cells)


def test_a_place_that_several_share_says_how_far_they_go():
    rows = [row(1.0, 3, beta=0.1, lr=1), row(4.0, 2, beta=0.1, lr=2), row(2.0, 5, beta=0.2, lr=1)]
    first, second = grid(rows, "reward/mean", "beta", None)
    assert (first.x, first.mean, first.low, first.high, first.seeds, first.configurations) == ("0.1", 2.5, 1, 4, 2, 2)
    assert (second.mean, second.low, second.high, second.seeds, second.configurations) == (2, 1, 3, 5, 1)


def test_what_was_tried_most_comes_first_and_numbers_go_by_size():
    rows = [row(0.0, 1, lr=lr, beta=beta) for lr in (10, 9) for beta in (0.3, "auto", 0.05)]
    assert parameters(rows) == ["beta", "lr"]
    assert values_of(rows, "beta") == ["0.05", "0.3", "auto"]
    assert values_of([*rows, row(0.0, 1, lr=9)], "beta")[-1] == "not set"
    assert values_of(rows, "lr") == ["9", "10"]
    with pytest.raises(ValueError, match="several methods"):
        grid([row(0.0, 1), row(0.0, 1, method="SFT")], "loss", "beta", None)


def test_a_seed_is_no_parameter_and_true_is_not_one():
    entry = {"method": "DPO", "model": "m", "dataset": "d", "tag": "t", "name": "x_s3", "seed": 3, "state": "done"}
    entry |= {
        "marks": [],
        "metrics": {},
        "training_seconds": [],
        "settings": {},
        "params": {"seed": 3, "DPO.beta": 0.1, "SFT.lr": 1},
    }
    (found,) = run_rows({"runs": [entry]})
    assert (found.params, found.seeds) == ({"beta": 0.1, "SFT.lr": 1}, [3])
    assert axes([row(0.0, 1, fit=1), row(0.0, 1, fit=True)]) == ["fit"]
    assert axes([row(0.0, 1, fit=1), row(0.0, 1, fit=1)]) == []


def test_a_value_of_a_methods_mapping_stands_beside_that_of_a_task():
    about = {"model": "m", "dataset": "d", "tag": "t", "seed": 0, "state": "done", "marks": [], "metrics": {}}
    one = {**about, "method": "DPO", "name": "a", "params": {"lr": 6e-4}, "settings": {"lr": 6e-4, "beta": 0.1}}
    other = {**about, "method": "SFT", "name": "b", "params": {}, "settings": {"lr": 2e-3}}
    rows = run_rows({"runs": [{**each, "training_seconds": []} for each in (other, one)]})
    assert [row.params for row in rows] == [{"lr": 6e-4}, {"lr": 2e-3}]
    assert axes(rows) == ["method", "lr"]
