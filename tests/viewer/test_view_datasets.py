"""The page Datasets: reading, filtering, voting, agreement, export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from cdpo.config.hub import HubSettings
from cdpo.config.lock import HubName
from cdpo.data.messages import assistant, user
from cdpo.data.prepared import read_split, write_split
from cdpo.hub.local import LocalHub
from cdpo.review import acts, publish, rows, sources
from cdpo.store import Store
from tests.results.made import finish, key

RUN = "first/SFT_tiny_playground_s0"
NASTY = "<script>alert(1)</script> $$x$$ **b** [l](http://e.org) \x1b[31mred \u202eabc `c`"


def texts(app: AppTest) -> str:
    kinds = (app.title, app.caption, app.markdown, app.warning, app.info, app.error, app.success, app.metric)
    return "\n".join(str(each.value) for kind in kinds for each in kind)


def htmls(app: AppTest) -> str:
    return "\n".join(each.proto.body for each in app.get("html"))


def ok(app: AppTest) -> AppTest:
    assert not app.exception, app.exception
    assert not app.error, app.error
    return app


@pytest.fixture
def open_page(open_app):
    """`open_page(store, data="PREP/playground")`"""
    return lambda store, **url: open_app(store, "datasets", **url)


@pytest.fixture
def own(playground, tmp_path) -> Path:
    """A copy of the playground's store, to be written to."""
    shutil.copytree(playground / ".cdpo", tmp_path / ".cdpo", symlinks=True)
    return tmp_path / ".cdpo"


def prep(store: Path) -> sources.Source:
    return sources.find(Store(store), "PREP/playground")


def train(store: Path) -> list[dict]:
    return read_split(prep(store).folder, "train")


def small(tmp_path: Path, data: list[dict]) -> Path:
    """A store with this one dataset."""
    store = Store(tmp_path / ".cdpo")
    made = finish(store, "PREP", "small", key("prep"))
    write_split(store.find(made) / "out", "train", data)
    (store.root / "refs").mkdir()
    return store.root


# -- reading -----------------------------------------------------------------------------------------------------------


def test_the_list_has_the_first_rows_and_their_numbers(playground, open_page):
    app = ok(open_page(playground / ".cdpo"))
    shown, data = app.dataframe[0].value, train(playground / ".cdpo")
    assert app.selectbox("data").value == "PREP/playground"
    assert list(shown["prompt"]) == [row["prompt"][-1]["content"] for row in data[:25]]
    assert list(shown["chosen_chars"]) == [len(row["chosen"][0]["content"]) for row in data[:25]]
    assert list(shown["margin(gold)"]) == [row["gold_chosen"] - row["gold_rejected"] for row in data[:25]]
    assert "**2,000** rows" in texts(app)


def test_pages_follow_each_other(playground, open_page):
    data = train(playground / ".cdpo")
    app = ok(open_page(playground / ".cdpo", page="3"))
    assert list(app.dataframe[0].value["prompt"]) == [row["prompt"][-1]["content"] for row in data[50:75]]


def test_the_filters_are_those_of_the_numbers(playground, open_page):
    app = ok(open_page(playground / ".cdpo", split="tune"))
    data = read_split(prep(playground / ".cdpo").folder, "tune")
    lengths = np.array([len(row["chosen"][0]["content"]) for row in data])
    app.slider("range_chosen_chars").set_value((20, 30))
    ok(app.run())
    assert f"**{((lengths >= 20) & (lengths <= 30)).sum()}** of 200 rows fit" in texts(app)
    assert set(app.dataframe[0].value["chosen_chars"]) <= {*range(20, 31)}
    margins = np.array([row["gold_chosen"] - row["gold_rejected"] for row in data])
    app.pills("where").set_value(["scores prefer the other"])
    ok(app.run())
    assert f"**{((lengths >= 20) & (lengths <= 30) & (margins < 0)).sum()}** of 200 rows fit" in texts(app)
    assert (app.dataframe[0].value["margin(gold)"] < 0).all()
    app.text_input("words").input("no such word")
    ok(app.run())
    assert "No row fits." in texts(app)


def test_rows_are_found_by_text_and_put_in_order(playground, open_page):
    data = train(playground / ".cdpo")
    app = ok(open_page(playground / ".cdpo", words="SAFFRON", sort="highest margin(gold)"))
    fitting = [row for row in data if "saffron" in json.dumps([row["prompt"], row["chosen"], row["rejected"]])]
    best = sorted((row["gold_chosen"] - row["gold_rejected"] for row in fitting), reverse=True)
    assert f"**{len(fitting)}** of 2,000 rows fit" in texts(app)
    assert list(app.dataframe[0].value["margin(gold)"]) == pytest.approx(best[:25])


def test_a_search_that_does_not_reach_all_rows_says_so(playground, open_page, monkeypatch):
    found = rows.search
    monkeypatch.setattr(rows, "search", lambda path, text: found(path, text, most=700))
    app = ok(open_page(playground / ".cdpo", words="list"))
    assert "The text was looked for in the first 700 of 2,000 rows." in texts(app)
    assert "**700** of 2,000 rows fit" in texts(app)


def test_a_row_is_shown_with_its_neighbours(playground, open_page):
    data = train(playground / ".cdpo")
    app = ok(open_page(playground / ".cdpo", row=data[4]["prompt_id"]))
    for name in ("prompt", "chosen", "rejected"):
        assert data[4][name][-1]["content"] in htmls(app)
    app.button("review_next").click()
    ok(app.run())
    assert app.query_params["row"] == data[5]["prompt_id"]
    assert data[5]["chosen"][0]["content"] in htmls(app)
    app.button("review_previous").click().run()
    app.button("review_previous").click()
    assert ok(app.run()).query_params["row"] == data[3]["prompt_id"]
    app.button("review_list").click()
    assert ok(app.run()).dataframe[0].value["prompt"][0] == data[0]["prompt"][-1]["content"]
    assert open_page(playground / ".cdpo", row=data[0]["prompt_id"]).button("review_previous").disabled


def test_next_goes_to_a_row_that_fits(playground, open_page):
    data = train(playground / ".cdpo")
    wrong = [row["prompt_id"] for row in data if row["gold_chosen"] < row["gold_rejected"]]
    app = ok(open_page(playground / ".cdpo", row=data[0]["prompt_id"], where="scores prefer the other"))
    app.button("review_next").click()
    assert ok(app.run()).query_params["row"] == wrong[0]


def test_responses_of_a_run_have_their_scores(playground, open_page):
    app = ok(open_page(playground / ".cdpo", data=RUN))
    shown = app.dataframe[0].value
    assert app.selectbox("split").value == "eval"
    assert {"reward/mean", "gold/mean", "response", "response_chars"} <= set(shown)
    row = rows.rows_at(sources.find(Store(playground / ".cdpo"), RUN).splits()["eval"], [0])[0]
    app = ok(open_page(playground / ".cdpo", data=RUN, row=row["prompt_id"]))
    assert row["response"] in htmls(app)
    assert {each.key for each in app.button} >= {"review_good", "review_bad"}


def test_what_is_wrong_in_an_address_breaks_nothing(playground, open_page):
    app = ok(
        open_page(
            playground / ".cdpo",
            data="nobody",
            split="nowhere",
            page="99999",
            numbers="x",
            sort="y",
            where="z",
            range_chosen_chars=["5000", "-3"],
            section="?",
        )
    )
    assert len(app.dataframe[0].value) == 25
    app = ok(open_page(playground / ".cdpo", row="nobody"))
    assert "no row of that id" in texts(app)


def test_another_dataset_starts_anew(playground, open_page):
    app = ok(open_page(playground / ".cdpo", row=train(playground / ".cdpo")[3]["prompt_id"], page="4"))
    app.slider("range_chosen_chars").set_value((20, 30)).run()
    app.selectbox("data").select(RUN)
    ok(app.run())
    assert "**150** rows" in texts(app)
    assert "row" not in app.query_params


def test_a_text_is_only_a_text(tmp_path, open_page):
    data = [{"prompt": [user(NASTY)], "chosen": [assistant(NASTY)], "rejected": [assistant("x" * 1_000_000)]}]
    store = small(tmp_path, data)
    app = ok(open_page(store))
    assert app.dataframe[0].value["chosen"][0] == NASTY.replace("\x1b", "�").replace("\u202e", "�")
    assert len(app.dataframe[0].value["rejected"][0]) < 300
    app = ok(open_page(store, row=rows.row_ids(read_split(sources.find(Store(store), "small").folder, "train"))[0]))
    assert "<script>" not in htmls(app)
    assert "&lt;script&gt;" in htmls(app)
    assert "\x1b" not in htmls(app)
    assert "\u202e" not in htmls(app)
    assert NASTY not in texts(app)
    assert len(htmls(app)) < 100_000


def test_what_training_sees(playground, open_page):
    row = train(playground / ".cdpo")[0]
    app = ok(open_page(playground / ".cdpo", row=row["prompt_id"], mask="true"))
    models = app.selectbox("model").options
    sft = next(each for each in models if each.startswith("SFT/"))
    app.selectbox("model").select(sft)
    ok(app.run())
    said = htmls(app)
    words = row["chosen"][0]["content"].split()
    assert all(f"{word}</ins>" in said for word in words)
    assert "list</ins>" not in said
    assert "&lt;|end|&gt;</ins>" in said
    assert "tokens of the prompt" in texts(app)
    assert "counts the tokens of the chosen response" in texts(app)


# -- voting ------------------------------------------------------------------------------------------------------------


def test_a_vote_a_flag_and_a_note_are_kept_at_once(own, open_page):
    row = train(own)[2]
    app = ok(open_page(own, row=row["prompt_id"], reviewer="Ann"))
    app.button("review_rejected").click().run()
    app.button("review_flag").click().run()
    next(each for each in app.text_area if each.label == "Note").input("look at <b>this</b>")
    ok(app.run())
    place = acts.Place("train", row["prompt_id"], rows.content_hash(row))
    found = acts.read_reviews(Store(own), prep(own).key)
    kept = found[place]["Ann"]
    assert (kept.vote, kept.flag, kept.note) == ("rejected", True, "look at <b>this</b>")
    assert "saved " in texts(app)
    other = ok(open_page(own, row=row["prompt_id"], reviewer="Bob"))
    other.button("review_chosen").click().run()
    again = acts.read_reviews(Store(own), prep(own).key)[place]
    assert (again["Ann"], again["Bob"].vote) == (kept, "chosen")
    app.button("review_rejected").click().run()
    assert acts.read_reviews(Store(own), prep(own).key)[place]["Ann"].vote is None
    assert len(list(acts.folder(Store(own), prep(own).key).iterdir())) == 2


def test_what_is_written_on_one_row_is_not_on_the_next(own, open_page):
    data = train(own)
    app = ok(open_page(own, row=data[2]["prompt_id"], reviewer="Ann"))
    app.text_area[0].input("mine").run()
    app.button("review_chosen").click().run()
    app.button("review_next").click().run()
    assert app.text_area[0].value == ""
    assert acts.read_reviews(Store(own), prep(own).key).keys() == {
        acts.Place("train", data[2]["prompt_id"], rows.content_hash(data[2]))
    }


def test_hidden_labels_are_kept_as_what_they_are(own, open_page):
    store = Store(own)
    for row in train(own)[:6]:
        app = ok(open_page(own, row=row["prompt_id"], reviewer="Ann", blind="true"))
        first = next(each for each in app.button if each.label == "A is better")
        assert "Chosen" not in texts(app)
        shown = htmls(app)
        a, b = (shown.index(row[name][0]["content"]) for name in ("chosen", "rejected"))
        first.click().run()
        place = acts.Place("train", row["prompt_id"], rows.content_hash(row))
        vote = acts.read_reviews(store, prep(own).key)[place]["Ann"].vote
        assert vote == ("chosen" if a < b else "rejected")
    assert {of["Ann"].vote for of in acts.read_reviews(store, prep(own).key).values()} == {"chosen", "rejected"}


def test_nobody_votes_without_a_name_or_where_nothing_can_be_kept(own, open_page, monkeypatch):
    row = train(own)[0]
    app = ok(open_page(own, row=row["prompt_id"]))
    assert app.button("review_chosen").disabled
    assert "Write your name" in texts(app)
    monkeypatch.setattr(acts, "refusal", lambda store: "it is read-only")
    app = ok(open_page(own, row=row["prompt_id"], reviewer="Ann"))
    assert app.button("review_chosen").disabled
    assert app.text_area[0].disabled
    assert "it is read" in texts(app)


def test_a_vote_that_could_not_be_kept_is_told(own, open_page, monkeypatch):
    app = ok(open_page(own, row=train(own)[0]["prompt_id"], reviewer="Ann"))
    monkeypatch.setattr(acts, "append_whole", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    app.button("review_chosen").click().run()
    assert "No space left" in app.error[0].value
    assert not app.exception


def vote(store: Path, who: str, at: int, value: str) -> None:
    row = train(store)[at]
    place = acts.Place("train", row["prompt_id"], rows.content_hash(row))
    acts.append(Store(store), prep(store).key, who, place, vote=value)


def test_rows_are_found_by_what_reviewers_said(own, open_page):
    for at, (one, other) in enumerate([("chosen", "chosen"), ("chosen", "rejected"), ("tie", "bad")]):
        vote(own, "Ann", at, one)
        vote(own, "Bob", at, other)
    vote(own, "Ann", 3, "bad")
    prompts = [row["prompt"][0]["content"] for row in train(own)]
    app = ok(open_page(own, reviewer="Bob", where="reviewers disagree"))
    assert list(app.dataframe[0].value["prompt"]) == prompts[1:3]
    assert list(app.dataframe[0].value["my vote"]) == ["rejected", "bad"]
    assert list(app.dataframe[0].value["all votes"]) == ["chosen 1, rejected 1", "tie 1, bad 1"]
    app = ok(open_page(own, reviewer="Bob", where="not yet by me"))
    assert app.dataframe[0].value["prompt"][0] == prompts[3]
    assert "**1,997** of 2,000 rows fit" in texts(app)


# -- agreement and export ----------------------------------------------------------------------------------------------


def test_agreement_and_its_figures(own, open_page):
    assert "Nobody reviewed this yet." in texts(ok(open_page(own, section="Agreement")))
    for at in range(8):
        vote(own, "Ann", at, "chosen")
        vote(own, "Bob", at, "chosen" if at < 6 else "rejected")
    app = ok(open_page(own, section="Agreement"))
    figures = {each.label: each.value for each in app.metric}
    assert figures["Rows reviewed"] == "8"
    assert figures["Reviewers agree"] == "75 %"
    from cdpo.stats.agreement import alpha

    expected = alpha([["chosen", "chosen"]] * 6 + [["chosen", "rejected"]] * 2)
    assert figures["Krippendorff's alpha"] == f"{expected:.2f}"
    compared = app.dataframe[1].value.set_index("with")
    assert compared.loc["the dataset's labels", "rows"] == 6
    assert compared.loc["the dataset's labels", "agree"].startswith("100 %")
    margins = [row["gold_chosen"] - row["gold_rejected"] for row in train(own)[:6]]
    told = [each for each in margins if each]
    assert compared.loc["margin(gold)", "rows"] == len(told)
    assert compared.loc["margin(gold)", "agree"].startswith(f"{100 * np.mean(np.array(told) > 0):.0f} %")


def test_the_export_is_offered_and_published(own, open_page, monkeypatch):
    from streamlit import config

    assert "nothing to export" in texts(ok(open_page(own, section="Export")))
    vote(own, "Ann", 0, "rejected")
    app = ok(open_page(own, section="Export"))
    assert "1 row, 1 of them the other way round" in texts(app)
    # whoever can reach it from elsewhere does not publish under this machine's name
    assert app.button("publish").disabled
    monkeypatch.setattr(
        "streamlit.get_option", lambda name: "127.0.0.1" if name == "server.address" else config.get_option(name)
    )
    app = ok(open_page(own, section="Export"))
    app.button("publish").click()
    ok(app.run())
    assert "Published as" in texts(app)
    name = publish.default_name(prep(own), HubSettings())
    there = LocalHub(own / "hub", "local").find(HubName("dataset", f"local/{name}"))
    assert there is not None
    assert (there[1] / "data" / "train.parquet").exists()


# -- stores of other kinds ---------------------------------------------------------------------------------------------


def test_a_store_without_data_tells_what_to_run(tmp_path, open_page):
    (tmp_path / "refs").mkdir(parents=True)
    app = ok(open_page(tmp_path))
    assert "No data yet." in texts(app)
    assert any("cdpo prep" in each.value for each in app.code)


def test_data_whose_files_are_gone_or_damaged_is_told(tmp_path, open_page):
    store = small(tmp_path, [{"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}])
    file = sources.find(Store(store), "small").splits()["train"]
    file.write_bytes(file.read_bytes()[:50])
    app = open_page(store)
    assert not app.exception
    assert "cannot be read" in app.error[0].value
    file.unlink()
    assert "No data yet." in texts(ok(open_page(store)))
    finish(Store(store), "GEN", "gone", key("gen"))
    assert "Its files are gone." in texts(ok(open_page(store)))


def test_data_to_imitate_and_prompts_alone(tmp_path, open_page):
    data = [
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": None},
        {"prompt": [user("c")], "chosen": None, "rejected": None},
    ]
    store = small(tmp_path, data)
    ids = rows.row_ids(read_split(sources.find(Store(store), "small").folder, "train"))
    assert list(ok(open_page(store)).dataframe[0].value["prompt"]) == ["a", "c"]
    for each in ids:
        app = ok(open_page(store, row=each, reviewer="Ann"))
        assert {button.key for button in app.button} >= {"review_good", "review_bad"}
        app.button("review_good").click()
        ok(app.run())
    assert ok(open_page(store, section="Export"))
