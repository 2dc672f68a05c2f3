"""Results: its rows against `collect` and pandas, drawings and links, and the page on stores of every kind."""

import json
import re
from collections.abc import Callable
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

import cdpo
from cdpo.cli import cli
from cdpo.files import write_json
from cdpo.report.collect import collect
from cdpo.report.facts import is_on_hub, published
from cdpo.report.overview import (
    Cell,
    Row,
    axes,
    configuration_rows,
    direction,
    greek,
    group_rows,
    metrics_of,
    run_rows,
    short_labels,
    shown_unasked,
    words,
)
from cdpo.report.reading import STALE
from cdpo.store import Store
from cdpo.viewer import charts, results_chart, results_downloads, results_table
from tests.results.made import PROMPTS, finish, key, record

OWN_REWARD = "EVALREWARD: the reward that scores this run also trained it"


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collected(playground):
    return collect(playground / ".cdpo")


def test_rows_have_the_numbers_of_the_results(collected):
    for rows, entries in (
        (configuration_rows(collected), collected["groups"]),
        (run_rows(collected), collected["runs"]),
    ):
        assert [row.label for row in rows] == [f"{entry['tag']}/{entry['name']}" for entry in entries]
        for row, entry in zip(rows, entries, strict=True):
            assert set(row.cells) == set(entry["metrics"])
            for name, value in entry["metrics"].items():
                cell = row.cells[name]
                assert (cell.mean, cell.low, cell.high) == (value["mean"], value["low"], value["high"])
                assert (cell.n, cell.split) == (value["n"], value["split"])
                assert cell.conditional_on == value["conditional_on"]


def test_intervals_over_seeds_are_the_other_ones(collected):
    rows = configuration_rows(collected, over="seeds")
    for row, entry in zip(rows, collected["groups"], strict=True):
        for name, value in entry["metrics"].items():
            over = value["between_seeds"] or {"low": None, "high": None}
            assert (row.cells[name].low, row.cells[name].high) == (over["low"], over["high"])
            assert row.cells[name].n == len(row.seeds)
    assert any(cell.low is not None for row in rows for cell in row.cells.values())


def test_groups_are_the_means_that_pandas_finds(playground, collected):
    table = cdpo.results(tag="sweep", store=playground / ".cdpo")
    rows = [row for row in run_rows(collected) if row.setup["tag"] == "sweep"]
    found = {row.params["beta"]: row.cells["gold/mean"] for row in group_rows(rows, ["beta"])}
    wanted = table.groupby("beta")["gold/mean"].agg(["mean", "min", "max", "size"])
    assert set(found) == set(wanted.index)
    for beta, cell in found.items():
        assert (cell.mean, cell.low, cell.high, cell.n) == pytest.approx(tuple(wanted.loc[beta]))


def test_a_run_that_two_tags_share_counts_once(collected):
    rows = [
        row for row in run_rows(collected) if row.params.get("beta") == 0.1 and row.params.get("learning_rate") == 6e-4
    ]
    assert [row.setup["tag"] for row in rows] == ["first", "first", "sweep"]
    (group,) = group_rows(rows, ["beta"])
    assert group.cells["gold/mean"].n == 2
    assert group.cells["gold/mean"].mean == pytest.approx(
        (rows[0].cells["gold/mean"].mean + rows[1].cells["gold/mean"].mean) / 2
    )


def test_nothing_is_averaged_over_methods_that_training_measured(collected):
    (group,) = [row for row in group_rows(run_rows(collected), ["tag"]) if row.setup["tag"] == "first"]
    assert "method" not in group.setup
    assert "loss" not in group.cells
    assert "rewards/accuracies" not in group.cells
    assert group.cells["gold/mean"].n == 6


def row(method="DPO", label="t/x", seeds=(0,), cells=(), **params):
    setup = {"method": method, "model": "tiny", "dataset": "d", "tag": "t"}
    found = {name: Cell(mean, mean - 1, mean + 1, 9, 1, "eval", "seed 0") for name, mean in dict(cells).items()}
    return Row(setup, params, list(seeds), "done", [], label, [label], found)


def test_splits_are_not_averaged():
    one, other = row(cells={"gold/mean": 1.0}, label="t/a"), row(cells={"gold/mean": 2.0}, label="t/b", beta=1)
    other.cells["gold/mean"] = Cell(2.0, None, None, 9, 1, "tune", "seed 0")
    assert not group_rows([one, other], ["method"])[0].cells


def test_only_what_differs_is_shown(collected):
    rows = configuration_rows(collected)
    assert axes(rows) == ["method", "tag", "seed", "beta", "learning_rate", "g", "gamma"]
    unasked = shown_unasked(rows, metrics_of(rows))
    # what the models answer comes before what their trainings measured
    assert unasked == [
        "gold/mean",
        "winrate/chosen",
        "reward/mean",
        "rewards/accuracies",
        "rewards/margins",
        "loss",
        # of the few runs that were judged
        "judge/winrate/chosen",
        "judge/lc_winrate/chosen",
    ]
    # of the dataset's own responses: the same in every row
    assert not {"reward/chosen", "gold/chosen"} & set(unasked)
    same = [row(cells={"gold/mean": 1.0, "loss": 2.0}), row(cells={"gold/mean": 1.0, "loss": 3.0})]
    assert shown_unasked(same, metrics_of(same)) == ["loss"]


def test_metrics_and_parameters_have_their_words():
    assert words("rewards/accuracies") == "reward accuracy"
    assert words("winrate/PP/chosen") == "win rate against chosen (PP)"
    assert words("lm_eval/arc/acc") == "lm_eval/arc/acc"
    assert [greek(name) for name in ("beta", "rho", "pi", "gamma", "omega", "learning_rate", "SFT.beta", "g")] == [
        "β", "ρ", "π", "γ", "ω", "learning_rate", "SFT.β", "g",
    ]  # fmt: skip
    assert direction("loss") == "lower"
    assert direction("gold/mean") == "higher"


@pytest.mark.parametrize("rows_of", [configuration_rows, run_rows])
def test_no_two_labels_are_the_same(collected, rows_of):
    labels = short_labels(rows_of(collected))
    assert len(set(labels)) == len(labels)
    assert max(map(len, labels)) < 60


def test_labels_of_what_differs_in_nothing_are_the_names():
    assert short_labels([row(label="t/a"), row(label="t/b")]) == ["t/a", "t/b"]
    assert short_labels([row(beta=0.1), row(beta=0.2, label="t/y"), row("SFT", "t/z")]) == [
        "DPO β 0.1",
        "DPO β 0.2",
        "SFT",
    ]


# -- durations and links -----------------------------------------------------------------------------------------------


def test_durations_are_those_of_the_methods_own_training(playground):
    store = Store(playground / ".cdpo")
    collected = collect(store.root)
    found = {row.label: row.seconds for row in run_rows(collected)}
    assert len(found) == len(store.read_refs())
    (own,) = found["first/SFT_tiny_playground_s0"]
    (group,) = [row.seconds for row in configuration_rows(collected) if row.label == "first/SFT_tiny_playground"]
    assert group == [own, *found["first/SFT_tiny_playground_s1"]]
    assert own == json.loads(next(store.steps.glob("SFT/*_s0-*/manifest.json")).read_text())["seconds"]


@pytest.mark.parametrize(
    "url, good",
    [
        ("https://huggingface.co/ns/model/tree/first", True),
        ("http://huggingface.co/ns", True),
        ("https://huggingface.co.evil.org/x", False),
        ("https://evil.org/huggingface.co", False),
        ("https://huggingface.co@evil.org/", False),
        ("javascript:alert(1)", False),
        ("javascript://huggingface.co/%0aalert(1)", False),
        ("file:///etc/passwd", False),
        ("/tmp/hub/ns/model", False),
        ("https://[", False),
        ("", False),
    ],
)
def test_links_lead_to_the_hub_and_nowhere_else(monkeypatch, url, good):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert is_on_hub(url) is good
    assert not is_on_hub("http://127.0.0.1:9/ns/model")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert is_on_hub("http://127.0.0.1:9/ns/model")


def push(store, tag, run, *urls):
    made = key("PUSH", tag, run)
    work = store.work(made)
    (work / "out").mkdir(parents=True)
    kinds = ("model", "dataset")
    write_json(
        work / "out" / "pushed.json", [{"kind": kind, "url": url} for kind, url in zip(kinds, urls, strict=True)]
    )
    about = {"params": {"run": run, "tag": tag}, "inputs": {}, "seed": None, "seconds": 1.0, "summary": {}}
    store.publish(made, "PUSH", run, work, about)


# -- drawings ----------------------------------------------------------------------------------------------------------


def drawn(uri):
    """(left, middle, right) of a drawing, in its points."""
    svg = unquote(uri.removeprefix("data:image/svg+xml,"))
    middle = float(re.search(r"cx='([\d.]+)'", svg).group(1))
    ends = re.search(r"d='M([\d.]+) \d+H([\d.]+)", svg.replace("M0 ", "N0 "))
    return (float(ends.group(1)), middle, float(ends.group(2))) if ends else (None, middle, None)


def test_drawings_of_a_column_have_one_scale():
    cells = [
        Cell(20.0, 10.0, 30.0, 9, 1, "eval", ""),
        Cell(15.0, 14.0, 16.0, 9, 1, "eval", ""),
        None,
        Cell(18.0, None, None, 1, 1, "eval", ""),
    ]
    first, second, none, alone = results_table.drawings(cells, spread=False)
    assert none is None
    left, middle, right = drawn(first)
    assert middle == pytest.approx((left + right) / 2)
    assert 0 < left < right < results_table.WIDE

    def place(value):
        return left + (value - 10) / 20 * (right - left)

    assert drawn(second) == pytest.approx((place(14), place(15), place(16)), abs=0.11)
    assert drawn(alone) == (None, pytest.approx(place(18), abs=0.11), None)


def test_drawings_of_equal_values_break_nothing():
    (only,) = results_table.drawings([Cell(1.0, None, None, 1, 1, "eval", "")], spread=False)
    assert drawn(only)[1] > 0


@pytest.mark.parametrize(
    "values, form",
    [
        ([0.5, 12.0], "%.3f"),
        ([0.00001], "%.4g"),
        ([0.00001, -0.5], "%.3f"),
        ([0.1, -5000.0], "%.4g"),
        ([123456.0], "%.4g"),
        ([], "%.3f"),
        ([0.0], "%.3f"),
    ],
)
def test_digits_are_sensible(values, form):
    assert results_table.number_format(values) == form


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_are_seen_on_white_and_on_black():
    for colour in charts.COLOURS:
        assert 1.05 / (luminance(colour) + 0.05) >= 3
        assert (luminance(colour) + 0.05) / (luminance("#171614") + 0.05) >= 3


def test_figures_can_be_taken_away(collected):
    rows = configuration_rows(collected)
    chart = results_chart.chart(rows, "gold/mean", spread=False)
    assert charts.figure_png(chart).startswith(b"\x89PNG")
    figure = json.loads(charts.figure_json(chart))
    (points,) = figure["datasets"].values()
    assert [each["mean"] for each in points] == [row.cells["gold/mean"].mean for row in rows]


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_results(open_app) -> Callable:
    """`open_results(store, view="runs")`"""
    return lambda store, **url: open_app(store, "results", **url)


def texts(app):
    parts = [each.value for each in (*app.caption, *app.markdown, *app.text)] + [each.body for each in app.get("html")]
    return " ".join(map(str, parts))


def test_the_table_has_a_row_for_each_configuration(playground, collected, open_results):
    app = open_results(playground / ".cdpo")
    assert not app.exception
    table = app.dataframe[0].value
    assert len(table) == len(collected["groups"])
    assert table["gold/mean"].tolist() == [group["metrics"]["gold/mean"]["mean"] for group in collected["groups"]]
    assert all(uri.startswith("data:image/svg+xml,") for uri in table["bar gold/mean"])
    assert {"param beta", "param learning_rate", "tag", "duration"} <= set(table.columns)
    assert not {"model", "dataset", "state", "reward/chosen"} & set(table.columns)
    assert table["parameters"].tolist() == ["", "g 0.3, γ 0.3", *[""] * 10]
    told = texts(app)
    assert "eval" in told
    assert "over prompts" in told
    assert OWN_REWARD in told


def test_runs_tags_and_search(playground, open_results):
    app = open_results(playground / ".cdpo", view="runs", tag=["first"])
    assert not app.exception
    assert len(app.dataframe[0].value) == 6
    app.text_input(key="find").set_value("dpr").run()
    assert app.dataframe[0].value["method"].tolist() == ["DPR", "DPR"]
    app.text_input(key="find").set_value("no such thing").run()
    assert not app.exception
    assert "No row fits" in texts(app)


def test_grouping_says_what_it_is(playground, open_results):
    app = open_results(playground / ".cdpo", by=["method"])
    assert not app.exception
    table = app.dataframe[0].value
    assert sorted(table["method"]) == ["DPO", "DPR", "SFT"]
    assert "lowest to the highest" in texts(app)
    assert "several" in table["tag"].tolist()


def test_columns_are_added_and_hidden(playground, open_results):
    app = open_results(
        playground / ".cdpo", add=["log-probability, chosen", "name"], hide=["gold reward"], beside=["±", "n"]
    )
    assert not app.exception
    columns = set(app.dataframe[0].value.columns)
    assert {"logps/chosen", "name", "half logps/chosen", "n logps/chosen"} <= columns
    assert not {"gold/mean", "bar logps/chosen"} & columns


def test_intervals_over_seeds_are_told(playground, open_results):
    app = open_results(playground / ".cdpo", over="seeds", tag=["first"])
    assert not app.exception
    assert "over seeds, conditional on these prompts" in texts(app)


def test_nonsense_in_the_url_changes_nothing(playground, open_results):
    app = open_results(
        playground / ".cdpo", view="x", by=["y"], over="z", beside=["?"], add=["!"], hide=["!"], metric="m", all="7"
    )
    assert not app.exception
    assert len(app.dataframe[0].value) == 12


def test_downloads_are_what_the_command_gives(playground, open_results):
    app = open_results(playground / ".cdpo")
    labels = [button.label for button in app.get("download_button")]
    assert labels[:4] == ["CSV", "JSON", "LaTeX", "Markdown"]
    assert "PNG" in labels
    assert "Figure JSON" in labels
    root = playground / ".cdpo"
    forms = {end: form for _, end, _, form in results_downloads.FORMS}
    for end, flag in (("csv", "--csv"), ("tex", "--latex"), ("md", "--markdown"), ("json", "--json")):
        wanted = CliRunner().invoke(cli, ["results", "--store", str(root), "--tag", "first", flag])
        assert wanted.exit_code == 0, wanted.output
        assert (
            results_downloads.written(forms[end], str(root), ("first",), every=False).strip() == wanted.output.strip()
        )


def test_reward_models_are_below(playground, collected, open_results):
    app = open_results(playground / ".cdpo")
    table = app.dataframe[-1].value
    assert table["rm/accuracy"].tolist() == [
        model["metrics"]["rm/accuracy"]["mean"] for model in collected["reward_models"]
    ]


# -- stores that are not finished --------------------------------------------------------------------------------------


def test_an_empty_store_says_what_to_run(tmp_path, open_results):
    (tmp_path / ".cdpo" / "refs").mkdir(parents=True)
    app = open_results(tmp_path / ".cdpo")
    assert not app.exception
    assert app.main.code[-1].value == "cdpo execute"


def evaluated(store, tag, name, *, method="DPO", seed=0, params=None, value=1.0, marks=(), split="eval", extra=()):
    made = key(tag, name)
    table = {"split": [split] * 60, "prompt_id": PROMPTS, "loss": [value + at / 100 for at in range(60)]}
    finish(store, method, name, made, table=table, seed=seed)
    record(store, tag, name, method, seed, params or {}, [made, *extra], marks)


def test_runs_that_failed_or_have_not_begun_are_rows_too(tmp_path, open_results):
    store = Store(tmp_path / ".cdpo")
    evaluated(store, "t", "DPO_a_s0", params={"beta": 0.1})
    record(store, "t", "DPO_b_s0", "DPO", 0, {"beta": 0.2}, [key("never")])
    record(store, "t", "DPO_c_s0", "DPO", 0, {"beta": 0.3}, [key("failed")])
    work = store.work(key("failed"))
    work.mkdir(parents=True)
    write_json(work / "failure.json", {})
    app = open_results(store.root, view="runs")
    assert not app.exception
    table = app.dataframe[0].value
    assert table["state"].tolist() == ["done", "unfinished", "failed"]
    assert table["loss"].notna().tolist() == [True, False, False]
    assert "2 rows without it" in texts(app)


def test_nothing_is_measured_yet(tmp_path, open_results):
    store = Store(tmp_path / ".cdpo")
    record(store, "t", "DPO_b_s0", "DPO", 0, {"beta": 0.2}, [key("never")])
    app = open_results(store.root)
    assert not app.exception
    assert app.dataframe[0].value["state"].tolist() == ["unfinished"]
    assert app.main.code[-1].value == "cdpo status"


def test_stale_runs_are_marked_and_explained(tmp_path, open_results):
    store = Store(tmp_path / ".cdpo")
    evaluated(store, "t", "DPO_a_s0", params={"beta": 0.1})
    store.write_ref("t", "DPO_a_s0", {**store.read_refs()[0], "stale": True})
    evaluated(store, "t", "DPO_b_s0", params={"beta": 0.2}, value=2.0)
    app = open_results(store.root)
    assert not app.exception
    assert app.dataframe[0].value["remarks"].fillna("").tolist() == ["⚠ 1", ""]
    assert STALE in texts(app).replace("&#x27;", "'")
    assert "before it was changed" in texts(app)


def test_links_of_what_was_published(tmp_path, open_results):
    store = Store(tmp_path / ".cdpo")
    for at, name in enumerate(("DPO_a_s0", "DPO_b_s0")):
        evaluated(store, "t", name, params={"beta": at}, value=float(at))
    push(store, "t", "DPO_a_s0", "https://huggingface.co/ns/DPO_a_s0/tree/t", "javascript:alert(1)")
    assert published(store) == {"t/DPO_a_s0": {"model": "https://huggingface.co/ns/DPO_a_s0/tree/t"}}
    app = open_results(store.root)
    assert not app.exception
    table = app.dataframe[0].value
    assert table["link model"].fillna("").tolist() == ["https://huggingface.co/ns/DPO_a_s0/tree/t", ""]
    assert "link dataset" not in table.columns


def test_names_are_shown_as_they_are(tmp_path, open_results):
    store = Store(tmp_path / ".cdpo")
    evaluated(store, "t", "DPO_<script>_$$x$$_s0", params={"beta": 0.1}, marks=["<b>mark</b>"])
    evaluated(store, "t", "DPO_**b**_s0", params={"beta": 0.2}, value=2.0)
    app = open_results(store.root, add=["name"])
    assert not app.exception
    assert "<b>mark" not in texts(app)
    assert "&lt;b&gt;mark" in texts(app)


def test_chosen_values_are_told_and_all_can_be_seen(tmp_path, open_results):
    store = Store(tmp_path / ".cdpo")
    for beta in (0.1, 0.2):
        for of in ("tune", "eval"):
            name = f"DPO_beta{beta}_{of}_s0"
            made = key(name)
            rows = [("tune", at, beta + at) for at in range(9)] + [("eval", at, beta + at) for at in range(9)]
            table = dict(zip(("split", "prompt_id", "loss"), map(list, zip(*rows, strict=True)), strict=True))
            table["prompt_id"] = [PROMPTS[at] for at in table["prompt_id"]]
            finish(store, "DPO", name, made, table=table)
            about = {"metric": "loss", "split": "tune", "of": of, "over": {"beta": beta}, "family": "f", "place": 0}
            ref = {"seed": 0, "method": "DPO", "model": "m", "dataset": "d", "params": {"beta": beta, "GEN.split": of}}
            store.write_ref("t", name, {**ref, "steps": [made], "marks": [], "recipe": of, "select": about})
    app = open_results(store.root)
    assert not app.exception
    assert len(collect(store.root)["selections"]) == 1
    shown = app.dataframe[0].value
    assert len(shown) == 1
    assert "swept values chosen on tune" in texts(app)
    app.toggle(key="all").set_value(True).run()
    assert not app.exception
    assert len(app.dataframe[0].value) == 4


def test_ticked_rows_are_drawn_and_can_be_compared(playground, open_results):
    app = open_results(playground / ".cdpo")
    buttons = {button.label: button for button in app.button}
    assert buttons["Curves of these"].disabled
    assert buttons["Compare these two"].disabled
