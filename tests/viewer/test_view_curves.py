"""Curves: their points, smoothing, bands and thinning against pandas and numpy; the page on stores of every kind."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cdpo.errors import DamagedFile
from cdpo.report.collect import collect
from cdpo.report.curves import SPREADS, Band, Points, band, read_log, smooth, thin, trainings
from cdpo.report.overview import configuration_rows
from cdpo.report.tuning import AVERAGED, fixed, grid, may_be_averaged, others, parameters, values_of
from cdpo.store import Store
from cdpo.viewer import charts, curves_chart
from tests.results.made import finish, key, record


def points(steps, values, epochs=None):
    steps = np.asarray(steps)
    return Points(
        steps, steps / 10 if epochs is None else np.asarray(epochs, dtype=float), np.asarray(values, dtype=float)
    )


def log(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# -- what is read ------------------------------------------------------------------------------------------------------


def test_points_are_by_step_and_the_last_one_counts(tmp_path):
    path = log(
        tmp_path / "metrics.jsonl",
        [
            {"step": 1, "loss": 3.0, "epoch": 0.5},
            {"step": 2, "loss": 2.0, "epoch": 1.0},
            {"step": 2, "eval_loss": 2.5, "epoch": 1.0},
            # resumed from a checkpoint after step 1
            {"step": 2, "loss": 1.5, "epoch": 1.0},
            {"step": 3, "loss": 1.0},
        ],
    )
    found = read_log(path)
    loss = found.metrics["loss"]
    assert loss.steps.tolist() == [1, 2, 3]
    assert loss.values.tolist() == [3.0, 1.5, 1.0]
    assert loss.epochs[:2].tolist() == [0.5, 1.0]
    assert np.isnan(loss.epochs[2])
    assert found.metrics["eval_loss"].steps.tolist() == [2]
    assert found.last_step == 3
    assert set(found.metrics) == {"loss", "eval_loss"}


def test_what_is_not_finite_is_counted_and_left_out(tmp_path):
    path = log(
        tmp_path / "m", [{"step": at, "loss": value} for at, value in enumerate([1.0, float("nan"), float("inf"), 2.0])]
    )
    loss = read_log(path).metrics["loss"]
    assert loss.values.tolist() == [1.0, 2.0]
    assert loss.lost == 2


def test_a_line_that_is_being_written_is_passed_over(tmp_path):
    path = log(tmp_path / "m", [{"step": 1, "loss": 1.0}])
    with path.open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert read_log(path).metrics["loss"].steps.tolist() == [1]


@pytest.mark.parametrize("text", ["no json\n", "[1, 2]\n", '{"loss": 1.0}\n'])
def test_what_is_no_such_file_is_said_to_be_damaged(tmp_path, text):
    (tmp_path / "m").write_text(text)
    with pytest.raises(DamagedFile, match="damaged"):
        read_log(tmp_path / "m")


@pytest.fixture
def store(tmp_path):
    """Two seeds of DPO: one finished, one that trains (its lock is held); and an SFT that failed."""
    store = Store(tmp_path / ".cdpo")
    for seed in (0, 1, 2):
        made = key("DPO", seed)
        lines = [{"step": at, "loss": 1 / at + seed, "epoch": at / 4} for at in range(1, 9 - 3 * (seed == 1))]
        work = store.work(made)
        work.mkdir(parents=True)
        log(work / "metrics.jsonl", lines)
        (work / "step.json").write_text(json.dumps({"pipeline": "DPO", "key": made}))
        if seed == 0:
            finish_here(store, made, work)
        if seed == 2:
            (work / "failure.json").write_text("{}")
        record(store, "t", f"DPO_b_s{seed}", "DPO", seed, {"beta": 0.1}, [made])
    record(store, "t", "SFT_s0", "SFT", 0, {}, [key("SFT")])
    return store


def finish_here(store, made, work):
    (work / "out").mkdir()
    store.publish(made, "DPO", "b_s0", work, {"params": {}, "inputs": {}, "seed": 0, "seconds": 1.0, "summary": {}})


def test_trainings_that_go_on_are_there_with_their_state(store):
    lock = store.lock(key("DPO", 1))
    try:
        found = trainings(store, store.read_refs())
    finally:
        store.unlock(key("DPO", 1), lock)
    assert [(each.run, each.stage, each.state) for each in found] == [
        ("t/DPO_b_s0", "DPO", "finished"),
        ("t/DPO_b_s1", "DPO", "training"),
        ("t/DPO_b_s2", "DPO", "failed"),
    ]
    assert read_log(found[0].path).last_step == 8
    assert [each.state for each in trainings(store, store.read_refs(), own=True)] == ["finished", "stopped", "failed"]


# -- mathematics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 0.99])
def test_smoothing_is_pandas_own(weight):
    values = np.random.default_rng(1).normal(size=500).cumsum()
    wanted = pd.Series(values).ewm(alpha=1 - weight, adjust=True).mean() if weight else values
    np.testing.assert_allclose(smooth(values, weight), wanted, rtol=1e-12, atol=1e-12)


def test_smoothing_takes_weights_below_one_alone():
    for weight in (1.0, -0.1):
        with pytest.raises(ValueError, match="weight"):
            smooth(np.ones(3), weight)
    assert smooth(np.full(5, 7.0), 0.9) == pytest.approx(np.full(5, 7.0))


@pytest.mark.parametrize("weight", [0.0, 0.8])
def test_bands_are_pandas_own(weight):
    """Of four seeds that logged other steps each."""
    random = np.random.default_rng(2)
    seeds = [points(np.sort(random.choice(200, 120, replace=False)), random.normal(size=120)) for _ in range(4)]
    table = pd.concat(
        pd.DataFrame(
            {
                "step": each.steps,
                "epoch": each.epochs,
                "value": pd.Series(each.values).ewm(alpha=1 - weight, adjust=True).mean() if weight else each.values,
            }
        )
        for each in seeds
    ).groupby("step")
    value = table["value"]
    for spread, low, high in (
        (SPREADS[0], value.min(), value.max()),
        (SPREADS[1], value.mean() - value.std(ddof=1).fillna(0), value.mean() + value.std(ddof=1).fillna(0)),
    ):
        found = band(seeds, spread, weight)
        assert found.steps.tolist() == list(value.mean().index)
        np.testing.assert_allclose(found.mean, value.mean(), atol=1e-12)
        np.testing.assert_allclose(found.low, low, atol=1e-12)
        np.testing.assert_allclose(found.high, high, atol=1e-12)
        np.testing.assert_allclose(found.epochs, table["epoch"].mean(), atol=1e-12)
        assert found.seeds.tolist() == value.size().tolist()


def test_a_seed_that_ended_before_is_said_and_not_made_up():
    found = band([points([1, 2, 3, 4], [1, 1, 1, 1]), points([1, 2], [3, 3])])
    assert found.mean.tolist() == [2, 2, 1, 1]
    assert found.seeds.tolist() == [2, 2, 1, 1]
    assert found.fewer_from == 3
    assert band([points([1, 2], [1, 2])]).fewer_from is None


def test_a_band_of_nothing_is_empty():
    assert len(band([])) == 0
    assert len(band([points([], [])])) == 0
    with pytest.raises(ValueError, match="none of"):
        band([], "quartiles")


@pytest.mark.parametrize("size, most", [(1001, 1000), (5000, 1000), (10_000, 300), (7, 4), (100_000, 50)])
def test_thinning_keeps_ends_and_spikes(size, most):
    random = np.random.default_rng(size)
    mean = random.normal(size=size)
    mean[size // 3], mean[size // 2] = 99.0, -99.0
    width = random.uniform(0, 5, size=size)
    steps = np.arange(size) * 3
    curve = Band(steps, steps / 7, mean, mean - width, mean + width, np.full(size, 2))
    found = thin(curve, most)
    assert len(found) <= most
    assert (np.diff(found.steps) > 0).all()
    assert found.steps[[0, -1]].tolist() == [0, 3 * (size - 1)]
    assert found.mean.max() == 99.0
    assert found.mean.min() == -99.0
    # all that is kept was there, and the band hides nothing
    at = np.searchsorted(steps, found.steps)
    np.testing.assert_array_equal(found.mean, mean[at])
    assert (found.low <= curve.low[at]).all()
    assert (found.high >= curve.high[at]).all()
    assert found.low.min() == curve.low.min() or curve.low.argmin() in (0, size - 1)
    assert found.high.max() == curve.high.max()


def test_a_wide_band_is_not_thinned_away():
    """Where it is widest the mean is neither lowest nor highest."""
    mean, width = np.sin(np.arange(5000)), np.ones(5000)
    width[2501] = 50.0
    assert abs(mean[2501]) < 0.5
    curve = Band(np.arange(5000), np.arange(5000), mean, mean - width, mean + width, np.full(5000, 3))
    found = thin(curve, 200)
    assert found.high.max() == mean[2501] + 50
    assert found.low.min() == mean[2501] - 50


def test_a_figure_of_many_points_can_be_taken_away():
    """Altair by itself refuses more than 5,000 rows."""
    many = [curves_chart.Drawn(f"line {at}", band([points(range(1000), np.arange(1000))])) for at in range(12)]
    chart = curves_chart.chart(many, [each.name for each in many], "loss", curves_chart.STEP, legend=True)
    figure = json.loads(charts.figure_json(chart))
    assert max(map(len, figure["datasets"].values())) == 12_000


def test_the_points_that_are_sent_are_bounded():
    long = band([points(range(20_000), np.arange(20_000))])
    for lines in (1, 30):
        sent = curves_chart.frame([curves_chart.Drawn(str(at), long) for at in range(lines)], curves_chart.STEP)
        assert len(sent) <= min(curves_chart.MOST_POINTS * lines, curves_chart.ALL_POINTS)
        assert sent["line"].nunique() == lines


def test_a_short_curve_is_not_thinned():
    curve = band([points(range(1000), np.arange(1000))])
    assert thin(curve, 1000) is curve


# -- parameters --------------------------------------------------------------------------------------------------------


def test_a_grid_has_the_numbers_of_the_results(playground):
    rows = configuration_rows(collect(playground / ".cdpo"))
    assert parameters(rows) == ["beta", "learning_rate"]
    assert others(rows, "beta", "learning_rate") == ["method", "tag", "g", "gamma"]
    sweep = fixed(rows, {"method": "DPO", "tag": "sweep"})
    assert others(sweep, "beta", "learning_rate") == []
    found = {(place.x, place.y): place for place in grid(sweep, "gold/mean", "beta", "learning_rate")}
    assert len(found) == 9
    for group in collect(playground / ".cdpo", "sweep")["groups"]:
        place = found[str(group["params"]["beta"]), str(group["params"]["learning_rate"])]
        value = group["metrics"]["gold/mean"]
        assert (place.mean, place.low, place.high) == (value["mean"], value["low"], value["high"])
        assert place.seeds == 1
        assert place.configurations == 1


@dataclass
class Made:
    """Configurations of a made store: DPO's over beta and learning_rate."""

    store: Store

    def add(self, params, values, method="DPO", seeds=(0,), tag="t"):
        for seed in seeds:
            name = f"{method}_{tag}_{json.dumps(params)}_s{seed}"
            train = key(name, "train")
            table = {
                "split": ["eval"] * len(values),
                "prompt_id": [f"{at:016x}" for at in range(len(values))],
                "loss": [each + seed for each in values],
            }
            finish(self.store, method, name, train, table=table, seed=seed)
            record(self.store, tag, name, method, seed, params, [train])

    def rows(self):
        return configuration_rows(collect(self.store.root))


@pytest.fixture
def made(tmp_path):
    return Made(Store(tmp_path / ".cdpo"))


def test_a_place_that_nobody_tried_has_no_number(made):
    made.add({"beta": 0.1, "learning_rate": 1e-3}, [1.0, 2.0], seeds=(0, 1))
    made.add({"beta": 10, "learning_rate": 1e-4}, [3.0, 5.0])
    rows = made.rows()
    assert values_of(rows, "beta") == ["0.1", "10"]
    assert values_of(rows, "learning_rate") == ["0.0001", "0.001"]
    found = {(each.x, each.y): (each.mean, each.seeds) for each in grid(rows, "loss", "beta", "learning_rate")}
    assert found == {
        ("0.1", "0.001"): (2.0, 2),
        ("10", "0.0001"): (4.0, 1),
        ("0.1", "0.0001"): (None, 0),
        ("10", "0.001"): (None, 0),
    }


def test_what_is_averaged_is_a_choice_and_never_of_methods(made):
    for beta in (0.1, 0.2):
        for rate in (1e-3, 1e-4):
            made.add({"beta": beta, "learning_rate": rate, "epochs": 1 if rate == 1e-3 else 2}, [beta, 100 * rate])
    rows = made.rows()
    assert others(rows, "beta", None) == ["learning_rate", "epochs"]
    averaged = grid(fixed(rows, {"learning_rate": AVERAGED}), "loss", "beta", None)
    assert [each.configurations for each in averaged] == [2, 2]
    assert averaged[0].mean == pytest.approx(np.mean([(0.1 + 0.1) / 2, (0.1 + 0.01) / 2]))
    assert (averaged[0].low, averaged[0].high) == pytest.approx((0.055, 0.1))
    # one that is fixed settles the other
    assert others(fixed(rows, {"learning_rate": "0.001"}), "beta", None) == []
    assert may_be_averaged("epochs")
    assert not may_be_averaged("method")
    assert not may_be_averaged("tag")
    made.add({"beta": 0.1}, [2.0, 3.0], method="SFT")
    with pytest.raises(ValueError, match="several methods"):
        grid(made.rows(), "loss", "beta", None)


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_curves(open_app) -> Callable:
    """`open_curves(store, tag=["t"], runs=[...])`"""
    return lambda store, **url: open_app(store, "curves", **url)


def sent(app):
    """The points of every chart that is on the page."""
    found = []
    for chart in app.get("vega_lite_chart"):
        tables = [pa.ipc.open_stream(each.data.data).read_pandas() for each in chart.proto.datasets]
        found.append(pd.concat(tables))
    return found


def texts(app):
    return " ".join(
        [
            *(each.value for each in app.caption),
            *(each.body for each in app.get("html")),
            *(each.value for each in app.markdown),
        ]
    )


def test_the_page_shows_the_configurations_that_trained_last(playground, open_curves):
    app = open_curves(playground / ".cdpo")
    assert not app.exception
    loss, accuracies = sent(app)
    assert loss["line"].nunique() == 6
    assert accuracies["line"].nunique() == 6
    assert app.multiselect(key="curve").value == ["loss", "rewards/accuracies"]


def test_chosen_configurations_have_the_mean_of_their_seeds(playground, open_curves):
    label = "first/DPO_tiny_playground_beta0.1_learning_rate0.0006"
    app = open_curves(playground / ".cdpo", runs=[label], smooth="0.0", curve=["loss"])
    assert not app.exception
    assert app.multiselect(key="runs").value == [label]
    files = list((playground / ".cdpo" / "steps" / "DPO").glob("*beta0.1_learning_rate0.0006_s*/metrics.jsonl"))
    assert len(files) == 2
    wanted = pd.concat(pd.read_json(path, lines=True) for path in files).groupby("step")["loss"]
    (drawn,) = sent(app)
    points = drawn.drop_duplicates("x").set_index("x").sort_index()
    np.testing.assert_allclose(points["mean"], wanted.mean(), rtol=1e-6)
    np.testing.assert_allclose(points["low"], wanted.min(), rtol=1e-6)
    np.testing.assert_allclose(points["high"], wanted.max(), rtol=1e-6)
    assert "lowest to highest" in texts(app)


def test_each_seed_can_be_a_line(playground, open_curves):
    label = "first/DPR_tiny_playground_beta0.1_g0.3_gamma0.3"
    app = open_curves(playground / ".cdpo", runs=[label], band="each seed", x="epoch")
    assert not app.exception
    drawn = sent(app)[0]
    assert sorted(drawn["line"].unique()) == ["DPR, seed 0", "DPR, seed 1"]
    assert drawn["x"].max() == 2.0


def test_other_stages_are_one_line_where_runs_share_them(playground, open_curves):
    app = open_curves(playground / ".cdpo", stage="RM", tag=["sweep"])
    assert not app.exception
    assert app.multiselect(key="curve").value == ["loss", "accuracy"]
    assert sent(app)[0]["line"].nunique() == 1


def test_nonsense_in_the_url_changes_nothing(playground, open_curves):
    app = open_curves(
        playground / ".cdpo",
        runs=["no/such"],
        curve=["nothing"],
        x="y",
        band="b",
        smooth="99",
        stage="?",
        part="p",
    )
    assert not app.exception
    assert sent(app)


def test_trainings_that_go_on_and_that_failed(store, open_curves):
    lock = store.lock(key("DPO", 1))
    try:
        app = open_curves(store.root, smooth="0")
    finally:
        store.unlock(key("DPO", 1), lock)
    assert not app.exception
    (drawn,) = sent(app)
    assert drawn["x"].max() == 8
    assert drawn[drawn["x"] == 8]["seeds"].max() == 2
    assert "not of all seeds from step 6" in texts(app)
    assert set(app.dataframe[0].value["state"]) == {"finished", "training", "failed"}


def test_values_that_are_no_numbers_are_told(store, open_curves):
    path = next((store.root / "steps" / "DPO").iterdir()) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 9, "loss": NaN, "epoch": 3}\n')
    app = open_curves(store.root)
    assert not app.exception
    assert "1 of 9 points are no finite numbers" in texts(app)


def test_a_damaged_file_is_told_and_the_others_are_shown(store, open_curves):
    (next((store.root / "steps" / "DPO").iterdir()) / "metrics.jsonl").write_text("{{{\n")
    app = open_curves(store.root)
    assert not app.exception
    assert "cannot be read" in app.warning[0].value
    assert sent(app)


def test_nothing_has_trained_yet(tmp_path, open_curves):
    store = Store(tmp_path / ".cdpo")
    record(store, "t", "DPO_s0", "DPO", 0, {"beta": 0.1}, [key("DPO")])
    for part in ("training curves", "parameter tuning"):
        app = open_curves(store.root, part=part)
        assert not app.exception
        assert not app.get("vega_lite_chart")
        assert app.main.code[-1].value == "cdpo status"


def test_no_runs(tmp_path, open_curves):
    (tmp_path / ".cdpo" / "refs").mkdir(parents=True)
    for part in ("training curves", "parameter tuning"):
        app = open_curves(tmp_path / ".cdpo", part=part)
        assert not app.exception
        assert not app.get("vega_lite_chart")
        assert app.main.code[-1].value.startswith("cdpo ")


def test_tuning_shows_a_heat_map_and_lines(playground, open_curves):
    app = open_curves(playground / ".cdpo", part="parameter tuning", metric="gold reward")
    assert not app.exception
    heat, lines = sent(app)
    assert set(zip(heat["x"], heat["y"], strict=True)) == {
        (x, y) for x in ("0.05", "0.1", "0.3") for y in ("0.0003", "0.0006", "0.0012")
    }
    assert set(heat["number"]) >= {"0.286", "0.441"}
    assert set(heat["sizes"]) == {"1 seed"}
    assert lines["y"].nunique() == 3
    assert app.selectbox(key="fix.tag").options == ["first", "sweep"]
    assert app.selectbox(key="fix.tag").value == "sweep"
    app.selectbox(key="fix.tag").select("first").run()
    assert not app.exception


def test_tuning_of_one_parameter_and_of_methods(playground, open_curves):
    app = open_curves(playground / ".cdpo", part="parameter tuning", across="learning_rate", down="nothing")
    assert not app.exception
    # beta differs besides: it is fixed, or averaged by choice
    options = app.selectbox(key="fix.beta").options
    assert options == ["0.05", "0.1", "0.3", AVERAGED]
    assert app.selectbox(key="fix.beta").value != AVERAGED
    app.selectbox(key="fix.beta").select(AVERAGED).run()
    assert not app.exception
    assert "Averaged over β" in texts(app)
    app = open_curves(playground / ".cdpo", part="parameter tuning", across="β", down="nothing")
    assert AVERAGED not in app.selectbox(key="fix.method").options


def test_missing_cells_are_drawn_as_missing(made, open_curves):
    made.add({"beta": 0.1, "learning_rate": 1e-3}, [1.0, 2.0])
    made.add({"beta": 0.2, "learning_rate": 1e-4}, [3.0, 5.0])
    app = open_curves(made.store.root, part="parameter tuning")
    assert not app.exception
    spec = json.loads(app.get("vega_lite_chart")[0].proto.spec)
    assert any(layer["encoding"].get("text", {}).get("value") == "not measured" for layer in spec["layer"])


def test_labels_of_runs_cannot_mark_up_the_page(store, open_curves):
    record(store, "t", "<b>x</b>$$_s1", "DPO", 1, {"beta": 0.3}, [key("DPO", 1)])
    app = open_curves(store.root)
    assert not app.exception
    assert "<b>x" not in texts(app)
