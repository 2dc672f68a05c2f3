"""The viewer as people use it: a real server, a real browser, a copy of the playground's store."""

import csv
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cdpo.store import Store
from tests.conftest import ROOT, run_cdpo
from tests.viewer.matrix import Matrix
from tests.viewer.served import CHROMIUM, browser, serve
from tests.viewer.states import DPO, SFT
from tests.viewer.visit import visiting

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: `make browser` installs it")
TITLES = ("Results", "Board", "Curves", "Compare", "Datasets", "Provenance")


@pytest.fixture(scope="module")
def project(playground, tmp_path_factory) -> Path:
    """A copy of the playground, to be voted in."""
    folder = tmp_path_factory.mktemp("copy") / "playground"
    shutil.copytree(playground, folder, symlinks=True)
    return folder


@pytest.fixture(scope="module")
def address(project):
    with serve(project / ".cdpo") as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def tabs(chromium):
    """What tabs are opened in."""
    return chromium.new_context()


@pytest.fixture
def visit(tabs, address):
    with visiting(tabs, address) as one:
        yield one


# -- going about -------------------------------------------------------------------------------------------------------


def test_every_page_opens_from_the_menu_and_by_its_address(visit):
    visit.page.goto(visit.address)
    visit.heading("Results")
    for title in (*TITLES[1:], "Results"):
        visit.menu(title)
        assert visit.place() == title.lower()
        assert not visit.wide(), title
    for title in TITLES:
        visit.open(title.lower())


@pytest.mark.slow
def test_a_tag_in_the_address_of_the_front_page_stays_on_every_page(visit):
    visit.open("?tag=first", "Results")
    for title in TITLES:
        visit.menu(title)
        assert visit.choices()["tag"] == ["first"]
        assert "first" in visit.page.get_by_test_id("stSidebar").inner_text()


def test_ticked_rows_are_drawn_and_compared(visit):
    visit.open("results?tag=first")
    curves, compare = visit.button("Curves of these"), visit.button("Compare these two")
    assert curves.is_disabled()
    visit.tick(0)
    assert curves.is_enabled()
    assert compare.is_disabled()
    visit.tick(2)
    visit.press("Compare these two")
    visit.heading("Compare")
    assert (visit.choices()["a"], visit.choices()["b"]) == ([DPO], [SFT])
    assert "A is better" in visit.words()
    visit.back("results")
    visit.page.get_by_test_id("stDataFrame").first.wait_for()
    visit.open("results?tag=first")
    visit.tick(0)
    visit.press("Curves of these")
    visit.heading("Curves")
    assert visit.choices()["runs"] == [DPO]
    assert "DPO" in visit.page.locator(".cdpo-legend, [data-testid=stHtml]").first.inner_text()
    visit.page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()


@pytest.mark.slow
def test_rows_are_searched_and_grouped_and_a_reload_shows_the_same(visit):
    visit.open("results")
    visit.write("Search", "DPR")
    assert visit.choices()["find"] == ["DPR"]
    visit.write("Search", "no such run")
    assert "No row fits." in visit.words()
    visit.write("Search", "sweep")
    visit.press("runs")
    before = visit.words()
    assert visit.choices() == {"find": ["sweep"], "view": ["runs"]}
    visit.page.reload()
    visit.heading("Results")
    assert visit.words() == before
    assert visit.page.get_by_role("textbox", name="Search", exact=True).input_value() == "sweep"


def test_prompts_are_filtered_searched_and_read(visit):
    visit.open(f"compare?a={SFT}&b={DPO}&metric=gold/mean")
    assert "B is better" in visit.words()
    assert "prompt 1 of 150" in visit.words()
    visit.choose("Show", "A wins")
    assert "prompt 1 of 38" in visit.words()
    visit.choose("Show", "B wins")
    assert "prompt 1 of 98" in visit.words()
    visit.write("Find in prompts and responses", "lemon")
    assert visit.choices()["text"] == ["lemon"]
    visit.press("Next")
    assert "prompt 2 of" in visit.words()
    shown = [each.inner_text() for each in visit.page.locator(".cdpo-text").all()]
    assert len(shown) >= 3
    here = visit.choices()["prompt"]
    visit.page.reload()
    visit.heading("Compare")
    assert visit.choices()["prompt"] == here
    assert [each.inner_text() for each in visit.page.locator(".cdpo-text").all()] == shown
    # a click in the list
    visit.tick(0, table=1)
    assert visit.choices()["prompt"] != here
    assert "prompt 1 of" in visit.words()


@pytest.mark.slow
def test_two_people_vote_and_see_how_far_they_agree(tabs, address, project):
    with visiting(tabs, address) as ada, visiting(tabs, address) as bob:
        for who, name in ((ada, "Ada"), (bob, "Bob")):
            who.open("datasets")
            who.write("Your name", name)
            who.tick(0)
        assert ada.choices()["row"] == bob.choices()["row"]
        ada.press("Chosen is better")
        ada.press("Next")
        ada.press("Tie")
        bob.press("Chosen is better")
        bob.press("Next")
        bob.press("Rejected is better")
        bob.page.get_by_label("Note").fill("the *other* <b>one</b>")
        bob.page.get_by_label("Note").blur()
        bob.page.get_by_text("saved ").wait_for()
        # each sees what the other said
        ada.press("Previous")
        ada.page.get_by_text("Others (1)").wait_for()
        ada.press("Agreement")
        words = ada.words()
        assert "50 %" in words
        assert "Agreement is over 2 rows with votes of two reviewers" in words
        ada.press("Export")
        rows = [json.loads(line) for line in ada.download("train.jsonl: 1 rows").splitlines()]
        assert [set(row) >= {"prompt", "chosen", "rejected"} for row in rows] == [True]
        bob.press("Export")
        assert bob.download("train.parquet: 1 rows").startswith(b"PAR1")
    kept = "".join(path.read_text() for path in (project / ".cdpo" / "review").rglob("*.jsonl"))
    assert kept.count('"chosen"') == 2
    assert "the *other* <b>one</b>" in kept


def test_results_and_figures_are_downloaded(visit):
    from PIL import Image

    visit.open("results?tag=first")
    visit.press("Download")
    rows = list(csv.DictReader(io.StringIO(visit.download("CSV").decode())))
    assert {"SFT", "DPO", "DPR"} == {row["method"] for row in rows}
    found = json.loads(visit.download("JSON"))
    assert len(found["runs"]) == 6
    assert r"\begin{tabular" in visit.download("LaTeX").decode()
    visit.page.keyboard.press("Escape")
    visit.page.mouse.click(700, 60)
    figure = json.loads(visit.download("Figure JSON"))
    assert "vega-lite" in figure["$schema"]
    picture = Image.open(io.BytesIO(visit.download("PNG")))
    assert picture.width > 1000
    assert len(picture.convert("RGB").getcolors(2**24)) > 10


def test_provenance_from_a_run_to_its_steps_and_their_differences(visit):
    visit.open(f"provenance?runs={DPO}_s0")
    steps = visit.page.locator(".cdpo-step")
    assert steps.count() > 8
    steps.filter(has_text="DPO").first.click()
    visit.page.wait_for_function("location.search.includes('step=')")
    visit.heading("Provenance")
    visit.press("Differences")
    assert visit.choices()["about"] == ["Differences"]
    assert visit.page.get_by_label("Compared with").is_visible()
    visit.press("Make it again")
    assert "cdpo redo" in visit.words()
    there = visit.page.url
    visit.page.reload()
    visit.heading("Provenance")
    assert visit.page.url == there
    assert "cdpo redo" in visit.words()


@pytest.mark.slow
def test_back_and_forth_between_pages(visit):
    visit.open(f"compare?a={SFT}&b={DPO}")
    visit.menu("Board")
    visit.menu("Curves")
    visit.back("board")
    # of the address of the page before, Streamlit takes the page, and not what was chosen on it
    visit.back("compare")
    visit.page.go_forward()
    visit.heading("Board")


@pytest.mark.slow
def test_two_people_look_at_different_things(tabs, address):
    with visiting(tabs, address) as one, visiting(tabs, address) as other:
        one.open("results?tag=first")
        other.open("results?tag=sweep")
        one.menu("Curves")
        other.menu("Curves")
        assert one.choices()["tag"] == ["first"]
        assert other.choices()["tag"] == ["sweep"]
        assert "DPR" in one.words()
        assert "DPR" not in other.words()


# -- what goes on now --------------------------------------------------------------------------------------------------

#: holds the lock of a step until it is told to go on, and then finishes it
WORKER = """
import sys
from pathlib import Path
from tests.viewer.matrix import Matrix
matrix = Matrix(Path(sys.argv[1]), 2)
lock = matrix.runs_now("dpo0", 40, place="cpu 0")
print("works", flush=True)
sys.stdin.readline()
matrix.store.unlock(matrix.key("dpo0"), lock)
import shutil
shutil.rmtree(matrix.store.work(matrix.key("dpo0")))
matrix.done("dpo0")
"""


def test_the_board_follows_a_step_that_is_made_now(tabs, tmp_path):
    Matrix(tmp_path, 2).done("prep", "sft")
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "works\n"
        with serve(tmp_path / ".cdpo") as address, visiting(tabs, address) as visit:
            # where something runs, the board comes first
            visit.page.goto(address)
            visit.heading("Board")
            visit.page.get_by_text("1 step running").wait_for()
            assert "40 of 100 steps" in visit.words()
            assert "2 of 8 steps done" in visit.words()
            worker.stdin.write("\n")
            worker.stdin.close()
            visit.page.get_by_text("Nothing is running").wait_for()
            visit.page.get_by_text("3 of 8 steps done").wait_for()
        assert worker.wait(timeout=20) == 0


# -- the command -------------------------------------------------------------------------------------------------------


def listeners(pid: int) -> set[str]:
    """Where a process listens: `ADDRESS:PORT`s in hexadecimal, as /proc/net/tcp and tcp6 have them."""
    own = {
        link[8:-1]
        for each in Path(f"/proc/{pid}/fd").iterdir()
        if (link := str(each.readlink()) if each.is_symlink() else "").startswith("socket:[")
    }
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in own:
                found.add(words[1])
    return found


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_this_machine_alone_until_it_is_ended(ended_by, project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cdpo.cli", "view", "--port", str(port)]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.1)
        found = listeners(server.pid)
        server.send_signal(ended_by)
        try:
            assert server.wait(timeout=15) in (0, -ended_by)
        finally:
            server.kill()
        assert found == {f"0100007F:{port:04X}"}
        assert "Traceback" not in server.stdout.read()


@pytest.fixture(scope="module")
def exported(project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    run_cdpo("view", "--export", folder, "--tag", "first", cwd=project)
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_was_exported_opens_without_a_server_or_a_network(chromium, exported, scheme):
    with visiting(chromium.new_context(offline=True, color_scheme=scheme), exported.as_uri()) as visit:
        visit.page.goto(f"{visit.address}/index.html")
        for name in ("Results", "Curves", "Comparison"):
            visit.page.get_by_role("link", name=name, exact=True).click()
            assert visit.page.get_by_role("heading", level=1).inner_text() == name
            drawn = visit.page.eval_on_selector_all("img", "all => all.map(one => one.complete && one.naturalWidth)")
            assert all(drawn)
            assert drawn or name == "Comparison"
            assert not visit.wide()
            visit.picture(f"export-{name.lower()}-{scheme}")
        assert SFT in visit.page.inner_text("body")
        first, second = visit.page.locator("details").all()[:2]
        assert first.locator(".card").first.is_visible()
        second.locator("summary").click()
        assert second.locator(".card").first.is_visible()
        behind, letters = visit.page.evaluate(
            "[getComputedStyle(document.documentElement).colorScheme, getComputedStyle(document.body).color]"
        )
        assert behind == "light dark"
        assert (letters == "rgb(255, 255, 255)") == (scheme == "dark")


# -- how it looks ------------------------------------------------------------------------------------------------------

LOOKED_AT = {
    "results": "results",
    "results-runs": "results?view=runs",
    "board": "board",
    "curves": "curves",
    "curves-tuning": "curves?part=parameter tuning&tag=sweep",
    "compare": f"compare?a={SFT}&b={DPO}",
    "compare-all": "compare?mode=all with all",
    "datasets": "datasets",
    "datasets-answers": f"datasets?data={SFT}_s0",
    "provenance": f"provenance?runs={DPO}_s0",
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_of_every_page(chromium, address, scheme):
    with visiting(chromium.new_context(color_scheme=scheme), address) as visit:
        for name, where in LOOKED_AT.items():
            visit.open(where)
            visit.page.wait_for_timeout(1500)
            assert not visit.wide(), name
            visit.picture(f"{name}-{scheme}")


def test_nothing_but_the_reviews_was_written(project, playground):
    """After all of the above."""
    store = project / ".cdpo"
    before = {path.relative_to(playground) for path in playground.rglob("*") if path.is_file()}
    after = {path.relative_to(project) for path in project.rglob("*") if path.is_file()}
    rest = {path for path in after - before if not path.name.startswith("index.sqlite")}
    assert {path.parts[:2] for path in rest} <= {(".cdpo", "review")}
    assert before <= after
    assert len(Store(store).read_refs()) == 15
