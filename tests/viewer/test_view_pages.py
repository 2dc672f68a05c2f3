"""Every page upon every store, by every address: the right words, no exception, and nothing written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.conftest import ROOT
from tests.viewer.conftest import APP, PAGES
from tests.viewer.states import DPO, LOCKS, MADE, SFT

TITLES = {name: name.capitalize() for name in PAGES}
NO_STORE = {page: ["Nothing to show yet", "There is no store here", "cdpo prep\ncdpo execute"] for page in PAGES}
REF = "refs/sweep/DPO_tiny_playground_beta0.05_learning_rate0.0003_s0.json"
BROKEN_REF = {page: [f"{REF}: damaged"] for page in PAGES}
NO_NUMBERS = {
    "results": ["Nothing is measured yet.", "cdpo status"],
    "board": ["Nothing is running", "59 of 59 steps done"],
    "curves": ["Smoothed by 0.6", "rewards/accuracies"],
    "compare": ["Nothing is measured in both", f"Not finished yet, and without results: {SFT} and {DPO}"],
    "provenance": ["PREP", "damaged", "the next execute makes it again"],
}
#: state -> page -> what it says
SAYS: dict[str, dict[str, list[str]]] = {
    "finished": {
        "results": ["One metric of all rows", "95 % intervals over prompts", "Reward models"],
        "board": ["Nothing is running", "59 of 59 steps done", "SFT_tiny_playground_s1"],
        "curves": ["Line: the mean over seeds", "rewards/accuracies", "DPO β 0.3 learning_rate 0.0012"],
        "compare": ["B is better", SFT, DPO, "of 150", "Mark differences"],
        "datasets": ["2,000 rows", "chosen length"],
        "provenance": ["None is chosen, so this is first/SFT_tiny_playground_s0", "PREP", "EVALREWARD_CHOSEN"],
    },
    "no_folder": NO_STORE,
    "empty_folder": NO_STORE,
    "no_step": {
        "results": ["Nothing is measured yet.", "cdpo status"],
        "board": ["This store has no plan.", "0 of 2 steps done, 2 not here"],
        "curves": ["No curves yet.", "None of these has begun to train", "cdpo status"],
        "compare": ["Nothing is measured in both", "Neither run has answered prompts yet", "cdpo execute"],
        "datasets": ["No data yet.", "cdpo prep\ncdpo execute"],
        "provenance": ["Nothing here tells what it is made from", "not here"],
    },
    "running": {
        "results": ["Nothing is measured yet.", "cdpo status"],
        "board": ["1 step running", "40 of 100 steps", "cpu 0", "3 of 11 steps done, 1 running, 7 waiting"],
        "curves": ["No curves yet.", "cdpo status"],
        "compare": ["Nothing is measured in both", "Neither run has answered prompts yet"],
        "datasets": ["No data yet."],
        "provenance": ["None is chosen, so this is first/DPO_tiny_beta0", "waiting", "done, in 20 s"],
    },
    "failed": {
        "results": ["One metric of all rows", "2 rows without it are not drawn"],
        "board": ["What went wrong", "CUDA out of &lt;memory&gt;", "no memory", "8 of 14 steps done", "cdpo logs "],
        "curves": ["No curves yet."],
        "compare": ["responses.parquet: cannot be read", "cdpo redo"],
        "datasets": ["Its files are gone.", "cdpo redo "],
        "provenance": ["done, in 1.0 s"],
    },
    "damaged_ref": BROKEN_REF,
    "damaged_steps": {
        "results": ["One metric of all rows", "95 % intervals over prompts"],
        "board": ["What went wrong", "damaged", "this plan cannot be read"],
        "curves": ["The curves of one training cannot be read; it is left out.", "No metric is chosen."],
        "compare": ["B is better", "Nothing was generated for this prompt"],
        "datasets": ["2,000 rows"],
        "provenance": ["damaged"],
    },
    "cut_off_tables": NO_NUMBERS | {"datasets": ["train.parquet: cannot be read", "cdpo redo"]},
    # of the right size: only who reads them sees it
    "garbled_tables": NO_NUMBERS
    | {
        "compare": ["responses.parquet: cannot be read", "cdpo redo"],
        "datasets": ["train.parquet: cannot be read", "cdpo redo"],
        "provenance": ["SFT_tiny_playground_s0"],
    },
    "lost_tables": NO_NUMBERS | {"datasets": ["Its files are gone.", "cdpo redo "]},
    "mirrored": {
        "results": ["One metric of all rows", "Reward models"],
        "board": ["This store has no plan.", "13 of 13 steps done"],
        "curves": ["rewards/accuracies", "Smoothed by 0.6"],
        "compare": ["B is better", "of 150"],
        "datasets": ["150 rows", "response length"],
        "provenance": ["SFT_tiny_playground_s0", "done, in "],
    },
}


@pytest.fixture(scope="module")
def stores(playground, tmp_path_factory):
    """`stores("failed")`: that store, made once."""
    made: dict[str, Path] = {}

    def store(state: str) -> Path:
        if state not in made:
            made[state] = MADE[state](tmp_path_factory.mktemp(state), playground)
        return made[state]

    yield store
    for lock in LOCKS:
        lock.release()


def said(app: AppTest) -> str:
    """All words of a page, as one reads them: without markup."""
    assert not app.exception, [each.value for each in app.exception]
    kinds = (app.title, app.header, app.subheader, app.caption, app.markdown, app.warning, app.info, app.error)
    written = [str(each.value).replace("**", "") for kind in (*kinds, app.text, app.code, app.toggle) for each in kind]
    named = [str(each.label) for kind in (app.selectbox, app.toggle, app.button) for each in kind]
    html = [re.sub(r"<wbr>|<style.*?</style>", "", each.proto.body, flags=re.DOTALL) for each in app.get("html")]
    words = [re.sub(r"<[^>]+>", " ", each) for each in html]
    return re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", "\n".join([*written, *named, *words]))


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time, but for the index, which may be made anew at any time."""
    found = sorted(path for path in root.rglob("*") if not path.name.startswith("index.sqlite"))
    # a folder's time changes where the index is put into it
    return {str(path): (0, 0) if path.is_dir() else (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("state", MADE)
def test_every_page_upon_every_store(state, page, stores, open_app):
    store = stores(state)
    before = files(store)
    words = said(open_app(store, page))
    if state not in ("no_folder", "empty_folder"):
        assert TITLES[page] in words
    for each in SAYS[state][page]:
        assert each in words, words
    assert files(store) == before


# -- addresses ---------------------------------------------------------------------------------------------------------

SOURCE = "\n".join(path.read_text() for path in (ROOT / "viewer").rglob("*.py"))
#: the name in the URL of every choice that the viewer has
KEYS = sorted(
    {"tag", "fix.beta", "range_chosen_chars", "hub_"}
    | {
        re.findall(r'key="(\w+)"', before)[-1]
        for before in SOURCE.split('bind="query-params"')[:-1]
        if re.findall(r'key="(\w+)"', before[-60:])
    }
)
NONSENSE = {
    "names": "nobody",
    "numbers": "-1",
    "no number": "nan",
    "large": "99999999999999999999",
    "markup": "<b>$$x$$</b> `",
    "empty": "",
    "unprintable": "\x1b[31m\u202e\x00",
    "long": "x" * 5000,
    "list": ["nobody", "nobody", "1,2", "/"],
}


def test_the_choices_are_found_in_the_source():
    assert {"a", "b", "metric", "prompt", "runs", "step", "reviewer", "board_page", "curve"} <= set(KEYS)
    assert len(KEYS) > 40


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", NONSENSE)
def test_an_address_of_nonsense_shows_the_page_all_the_same(kind, page, stores, open_app):
    url = dict.fromkeys(KEYS, NONSENSE[kind])
    assert TITLES[page] in said(open_app(stores("finished"), page, **url))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("state", ["no_folder", "no_step", "running", "failed", "damaged_ref", "lost_tables"])
def test_nor_does_it_break_a_store_that_is_not_whole(state, page, stores, open_app):
    for value in ("nobody", "1"):
        assert said(open_app(stores(state), page, **dict.fromkeys(KEYS, value)))


def test_one_wrong_choice_leaves_the_others(stores, open_app):
    url = {"a": "nobody", "b": DPO, "metric": "x", "prompt": "..", "step": "zz", "tag": "none"}
    words = said(open_app(stores("finished"), "compare", **url))
    assert "There is no run “nobody” here" in words
    app = open_app(stores("finished"), "compare", a=SFT, b=DPO, metric="x", prompt="..", tag="none")
    assert "Neither run answered the prompt of this address" in said(app)
    assert "B is better" in said(app)
    assert app.multiselect("tag").value == []
    assert "knows no step of the key in the address" in said(open_app(stores("finished"), "provenance", step="zz"))


def test_the_tag_in_the_address_holds_on_every_page(stores, open_app):
    for page in PAGES:
        app = open_app(stores("finished"), page, tag=["sweep"])
        assert app.multiselect("tag").value == ["sweep"]
        assert "first/" not in said(app)


# -- what it costs -----------------------------------------------------------------------------------------------------

#: a process of its own, in which nothing was imported by other tests
LIGHT = """
import json, sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file(sys.argv[1], default_timeout=120)
for page in sys.argv[2:]:
    app.switch_page(f"screens/{page}.py").run()
    assert not app.exception, (page, app.exception)
heavy = {"torch", "transformers", "trl", "datasets"}
print(json.dumps(sorted(heavy & {name.partition(".")[0] for name in sys.modules})))
"""


def test_no_page_imports_what_trains(playground):
    command = [sys.executable, "-c", LIGHT, str(APP), *PAGES]
    environment = {**os.environ, "CDPO_STORE": str(playground / ".cdpo")}
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == []
