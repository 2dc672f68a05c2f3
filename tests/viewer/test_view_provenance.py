"""From numbers to the steps that made them: on the stored playground, and on stores that are not whole."""

import re
import shutil
from urllib.parse import unquote

import pandas as pd
import pytest

from cdpo.files import read_json, write_json
from cdpo.report.board import read_board
from cdpo.report.collect import collect_run
from cdpo.report.provenance import Provenance, hashed, last_lines, log_of, members, rebuilt_by
from cdpo.store import Store
from cdpo.store.names import short
from tests.results.made import PROMPTS, finish, key, record
from tests.viewer.matrix import Matrix, shown


@pytest.fixture
def matrix(tmp_path):
    return Matrix(tmp_path)


def provenance(store):
    return Provenance(store, read_board(store, store.read_refs()))


def boxes(page) -> int:
    return page.count('class="cdpo-step')


def tables(app) -> str:
    return "\n".join(frame.value.to_string() for frame in app.dataframe)


@pytest.fixture(scope="module")
def real(playground):
    return provenance(Store(playground / ".cdpo"))


def test_steps_behind_come_parents_first(matrix):
    steps = provenance(matrix.store)
    names = [node.key for node in steps.behind([matrix.key("scored1")])]
    assert names == [matrix.key(name) for name in ("prep", "sft", "dpo1", "gen1", "scored1")]
    assert len(steps.behind(matrix.plan.steps)) == len(matrix.plan.steps)


def test_every_number_of_a_real_run_has_the_step_that_measured_it(real):
    for ref in real.store.read_refs():
        values = collect_run(real.store, ref)["metrics"]
        figures = {figure.name: figure for figure in real.figures(ref)}
        assert figures.keys() == values.keys()
        for name, figure in figures.items():
            assert figure.key in ref["steps"]
            assert figure.value["mean"] == values[name]["mean"]
            wanted = ref["method"] if name.startswith(("rewards/", "loss")) else None
            wanted = "EVALREWARD" if name.startswith(("reward/", "gold/", "winrate/")) else wanted
            wanted = "EVALGPT" if name.startswith("judge/") else wanted
            assert wanted in (None, real.node(figure.key).pipeline), name


def test_the_column_stands_in_the_step_that_is_named(real):
    """The mean is that of the file that the step left."""
    ref = next(ref for ref in real.store.read_refs("first") if ref["method"] == "DPO")
    figure = next(figure for figure in real.figures(ref) if figure.name == "reward/mean")
    node = real.node(figure.key)
    table = pd.read_parquet(node.folder / "out" / "scores.parquet")
    table = table[table["split"] == figure.value["split"]] if "split" in table else table
    from cdpo.pipeline import pipelines

    column = pipelines()[node.pipeline].metrics["reward/mean"]
    assert table[column].mean() == pytest.approx(figure.value["mean"], abs=1e-4)


def test_what_was_hashed_chosen_before_default(real):
    dpo = next(node for node in map(real.node, real.board.planned) if node.pipeline == "DPO")
    rows = hashed(dpo, lambda made: real.node(made).label)
    told = {row.name: row for row in rows}
    assert not told["beta"].default
    assert not told["learning_rate"].default
    assert told["label_smoothing"].default
    assert told["model"].value.startswith("SFT/")
    assert told["seed"].kind == "seed"
    assert [row.default for row in rows] == sorted(row.default for row in rows)


def test_the_nearest_step_is_the_first_of_the_others(real):
    dpo = next(
        node
        for node in map(real.node, real.board.planned)
        if node.pipeline == "DPO" and "sweep" in "".join(real.runs_with(node.key))
    )
    nearest = real.others(dpo)[0]
    assert nearest.pipeline == "DPO"
    assert (
        sum(dpo.described["params"][name] != nearest.described["params"][name] for name in dpo.described["params"]) <= 1
    )


def test_a_step_is_found_by_the_beginning_of_its_key(matrix):
    matrix.done("prep")
    steps = provenance(matrix.store)
    assert steps.find(short(matrix.key("dpo0"))) == matrix.key("dpo0")
    assert steps.find(matrix.key("dpo0")) == matrix.key("dpo0")
    assert steps.find("nothing") is None
    assert steps.find("0" * 12) is None


def test_parents_that_are_gone_are_missing(tmp_path, open_app):
    store = Store(tmp_path / ".cdpo")
    gone = key("gone")
    made = finish(store, "SFT", "tiny", key("sft"), inputs={"data": {"step": gone}}, params={"learning_rate": 0.1})
    manifest = store.find(made) / "manifest.json"
    write_json(manifest, {**read_json(manifest), "version": 1})
    record(store, "old", "SFT_tiny", "SFT", 0, {}, [made])
    nodes = provenance(store).behind([made])
    assert [node.state for node in nodes] == ["missing", "done"]
    page = shown(open_app(store.root, "provenance"))
    assert boxes(page) == 2
    assert "cdpo-step missing" in page


def test_a_damaged_manifest_is_told(matrix, open_app):
    matrix.done("prep", "sft", "dpo0")
    (matrix.store.find(matrix.key("sft")) / "manifest.json").write_text("{")
    node = provenance(matrix.store).node(matrix.key("sft"))
    assert node.state == "damaged"
    # its plan tells what it was to be made from
    assert list(node.parents.values()) == [matrix.key("prep")]
    assert rebuilt_by(node, True) == [("cdpo execute", "makes the step, and what it needs")]
    for about in ("What was hashed", "Manifest", "Log", "Differences", "Make it again"):
        app = open_app(matrix.store.root, "provenance", step=short(matrix.key("sft")), about=about)
        assert "damaged" in shown(app)


def test_the_drawing_has_every_step_every_need_and_every_letter(real):
    from cdpo.viewer.provenance_graph import drawn

    run = next(row for row in real.board.rows if row.name.startswith("DPR"))
    nodes = real.behind(run.steps)
    page = drawn(nodes, [("tag", "a&b")], run.steps[0], ())
    assert boxes(page) == len(nodes)
    picture = unquote(page.partition("data:image/svg+xml,")[2].partition('"')[0])
    assert picture.count("<path ") == sum(len(set(node.parents.values())) for node in nodes)
    names = re.findall(r"<small>(.*?)</small>", page)
    assert sorted(name.replace("<br>", "") for name in names) == sorted(node.name for node in nodes)
    assert "tag=a%26b" in page
    # no box lies upon another
    places = [tuple(map(int, found)) for found in re.findall(r"left:(\d+)px;top:(\d+)px;width:222px", page)]
    assert len(set(places)) == len(nodes)
    assert all(abs(a[0] - b[0]) >= 222 for a in places for b in places if a != b and a[1] == b[1])


def test_a_failed_and_a_waiting_step(matrix, open_app):
    matrix.done("prep", "sft")
    matrix.failed("dpo0", "<i>no room</i>", ["one", "two <script>"])
    app = open_app(matrix.store.root, "provenance", step=short(matrix.key("dpo0")), about="Log")
    page = shown(app)
    assert "&lt;i&gt;no room&lt;/i&gt;" in page
    assert "two &lt;script&gt;" in page
    assert "<script>" not in page
    app = open_app(matrix.store.root, "provenance", step=short(matrix.key("gen1")), about="Log")
    assert "not begun" in shown(app)
    assert any("no log" in each.value for each in app.info)
    app = open_app(matrix.store.root, "provenance", step=short(matrix.key("gen1")), about="Make it again")
    assert any("cdpo execute" in each.value for each in app.code)


def test_the_page_by_its_address(playground, open_app, real):
    run = next(row for row in real.board.rows if row.name.startswith("DPO") and row.tag == "first")
    app = open_app(playground / ".cdpo", "provenance", runs=run.label)
    page = shown(app)
    assert boxes(page) == len(real.behind(run.steps))
    dpo = run.stages["DPO"][0]
    app = open_app(playground / ".cdpo", "provenance", runs=run.label, step=short(dpo))
    assert app.selectbox(key="step").value == f"DPO {short(dpo)}"
    assert "beta" in tables(app)
    # a configuration stands for the runs of its seeds
    both = open_app(playground / ".cdpo", "provenance", runs=run.label.rsplit("_s", 1)[0])
    assert boxes(shown(both)) > boxes(page)


def test_a_number_is_followed_back(playground, open_app, real):
    run = next(row for row in real.board.rows if row.name.startswith("DPO") and row.tag == "first")
    app = open_app(playground / ".cdpo", "provenance", runs=run.label, number="reward/mean")
    page = shown(app)
    measured = run.stages["EVALREWARD"][0]
    assert app.selectbox(key="number").value.startswith("reward/mean = ")
    assert app.selectbox(key="step").value == f"EVALREWARD {short(measured)}"
    # what the number does not come from steps back
    drawn = real.behind(run.steps)
    assert page.count(' faded"') == len(drawn) - len(real.behind([measured]))
    loss = next(each for each in app.selectbox(key="number").options if each.startswith("loss = "))
    app.selectbox(key="number").select(loss).run()
    assert app.selectbox(key="step").value == f"DPO {short(run.stages['DPO'][0])}"


def test_differences_of_two_steps(playground, open_app, real):
    run = next(row for row in real.board.rows if row.tag == "sweep")
    app = open_app(playground / ".cdpo", "provenance", step=short(run.stages["DPO"][0]), about="Differences")
    assert not app.exception
    assert len(app.dataframe[0].value) == 1
    assert app.dataframe[0].value["what"].iloc[0] in ("beta", "learning_rate")


def test_manifest_and_commands(playground, open_app, real):
    run = real.board.rows[0]
    node = real.node(run.stages["SFT"][0])
    app = open_app(playground / ".cdpo", "provenance", step=short(node.key), about="Manifest")
    assert "model.safetensors" in tables(app)
    assert node.manifest["code"] in shown(app)
    app = open_app(playground / ".cdpo", "provenance", step=short(node.key), about="Make it again")
    commands = [each.value for each in app.code]
    assert f"cdpo reproduce {node.folder} --to rebuilt" in commands
    assert f"cdpo redo {short(node.key)}" in commands


def test_addresses_that_mean_nothing(playground, open_app):
    app = open_app(
        playground / ".cdpo", "provenance", step="000000000000", runs="no/such", number="x = 1", about="?", other="?"
    )
    assert boxes(shown(app)) > 3
    assert any("knows no step" in each.value for each in app.warning)


def test_an_empty_store(tmp_path, open_app):
    (tmp_path / ".cdpo" / "refs").mkdir(parents=True)
    app = open_app(tmp_path / ".cdpo", "provenance")
    assert not app.exception
    assert any("cdpo prep" in each.value for each in app.code)


def test_only_the_end_of_a_log_is_read(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("".join(f"line {at}\n" for at in range(100_000)))
    lines, whole = last_lines(log, 200)
    assert len(lines) == 200
    assert lines[-1] == "line 99999"
    assert not whole
    log.write_text("one\ntwo\n")
    assert last_lines(log, 200) == (["one", "two"], True)


def test_labels_of_configurations():
    labels = ["t/a_s0", "t/a_s1", "t/ab_s0", "t/a"]
    assert members("t/a", labels) == ["t/a_s0", "t/a_s1", "t/a"]
    assert members("t/ab_s0", labels) == ["t/ab_s0"]
    assert members("t/c", labels) == []


def test_a_log_of_a_finished_step(matrix):
    matrix.done("prep")
    node = provenance(matrix.store).node(matrix.key("prep"))
    assert log_of(node) is None
    (node.folder / "log.txt").write_text("done\n")
    assert log_of(node) == node.folder / "log.txt"
    shutil.rmtree(node.folder)
    assert log_of(node) is None


def test_numbers_of_two_steps_that_measure_the_same(tmp_path):
    """The later step of the run counts, as in `cdpo results`."""
    store = Store(tmp_path / ".cdpo")
    made = []
    for name, value in (("first", 0.0), ("second", 1.0)):
        table = {"split": ["eval"] * 60, "prompt_id": PROMPTS, "reward_generated": [value] * 60}
        made.append(finish(store, "EVALREWARD", name, key(name), table=table))
    record(store, "t", "SFT_tiny", "SFT", 0, {}, made)
    (figure,) = (each for each in provenance(store).figures(store.read_refs()[0]) if each.name == "reward/mean")
    assert (figure.value["mean"], figure.key) == (1.0, made[1])
