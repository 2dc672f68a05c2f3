"""The board, and what stands behind it: plans, work folders and locks as an execution leaves them."""

import os
import subprocess
import sys
import time

import pytest

from cdpo.engine.process import identity
from cdpo.files import write_json
from cdpo.report.board import Known, read_board
from cdpo.report.time_left import executions, slots_of, time_left
from cdpo.store import Store
from cdpo.store.services import Room
from tests.results.made import finish, key, record
from tests.viewer.matrix import GONE, Matrix, shown


@pytest.fixture
def matrix(tmp_path):
    return Matrix(tmp_path)


def test_states_of_a_half_finished_matrix(matrix, open_app):
    matrix.done("prep", "sft", "dpo0")
    lock = matrix.runs_now("gen0", 30)
    matrix.failed("dpo1", "out of memory", ["loading", "out of memory"])
    board = matrix.board()
    assert board.stages == ["PREP", "SFT", "DPO", "GEN", "EVALREWARD"]
    first, second, third = board.rows
    assert board.cell(first, "GEN").state == "running"
    assert board.cell(first, "GEN").share == 0.3
    assert board.cell(second, "DPO").state == "failed"
    assert board.cell(second, "EVALREWARD").state == "blocked"
    assert board.cell(third, "DPO").state == "waiting"
    # PREP and SFT are shared, and counted once
    assert board.counts(board.rows)["SFT"] == {"done": 1}
    assert board.counts(board.rows)["DPO"] == {"done": 1, "failed": 1, "waiting": 1}
    page = shown(open_app(matrix.store.root, "board"))
    assert "30 %" in page
    assert "1 step running" in page
    assert page.count("cdpo-mark blocked") >= 2
    assert "DPO_<wbr>tiny_<wbr>beta2" in page
    matrix.store.unlock(matrix.key("gen0"), lock)


def test_failures_are_told_with_cause_log_and_what_they_hold_up(matrix, open_app):
    matrix.done("prep", "sft")
    for name in ("dpo0", "dpo1"):
        matrix.failed(name, "<b>no memory</b> $$", ["loading", "\x1b[31mred\x1b[0m", "gave up"])
    (cause,) = matrix.board().causes(matrix.board().rows)
    assert len(cause.steps) == 2
    assert len(cause.blocked) == 4
    assert cause.asked
    assert sorted(cause.runs) == ["first/DPO_tiny_beta0", "first/DPO_tiny_beta1"]
    app = open_app(matrix.store.root, "board")
    page = shown(app)
    assert "<b>2 steps failed</b>, for 2 runs, and 4 steps cannot start before" in page
    assert "&lt;b&gt;no memory&lt;/b&gt; $$" in page
    assert "\\u001b[31mred" in page
    assert "gave up" in page
    assert any(f"cdpo logs {matrix.key('dpo1')[:12]}" in each.value for each in app.code)


def test_a_killed_worker_waits_and_an_orphan_runs(matrix):
    matrix.done("prep", "sft")
    lock = matrix.runs_now("dpo0", 10)
    matrix.store.unlock(matrix.key("dpo0"), lock)
    assert matrix.state("dpo0") == "waiting"
    matrix.runs_now("dpo1", 10, supervisor=GONE)
    assert matrix.state("dpo1") == "running"
    assert matrix.board().at_work()[0]["alone"]


def test_weights_that_are_made_again_are_running(matrix):
    matrix.done("prep", "sft")
    (matrix.store.find(matrix.key("sft")) / "evicted").write_text('{"files": []}')
    lock = matrix.runs_now("sft", 30, place="gpu 0")
    board = matrix.board()
    assert [(said["name"], said["place"], said["done"]) for said in board.at_work()] == [
        (matrix.steps["sft"].name, "gpu 0", 30)
    ]
    matrix.store.unlock(matrix.key("sft"), lock)
    assert matrix.state("sft") == "evicted"


def test_damaged_and_evicted_steps(matrix, open_app):
    matrix.done("prep", "sft", "dpo0")
    (matrix.store.find(matrix.key("sft")) / "evicted").write_text('{"files": []}')
    (matrix.store.find(matrix.key("dpo0")) / "manifest.json").write_text("{")
    assert matrix.state("sft") == "evicted"
    assert matrix.state("dpo0") == "damaged"
    page = shown(open_app(matrix.store.root, "board"))
    assert "1 step damaged" in page
    assert "2 of 11 steps done" in page


def test_devices_say_who_and_how_far(matrix, open_app):
    matrix.done("prep", "sft", seconds=20.0)
    matrix.runs_now("dpo0", 50, seconds=125, place="gpu 0")
    matrix.runs_now("dpo1", place="gpu 1", supervisor=GONE)
    matrix.store.append_event({"event": "plan", "slots": 3})
    page = shown(open_app(matrix.store.root, "board"))
    assert "<th>gpu 0</th>" in page
    assert "50 of 100 steps" in page
    assert "2m 0" in page
    assert "has not said how far it is" in page
    assert "goes on by itself" in page


def test_a_step_in_parts_runs_with_its_parts(matrix, open_app):
    matrix.done("prep", "sft", "dpo0")
    locks = []
    for at in range(2):
        part = key("part", at)
        work = matrix.store.work(part)
        work.mkdir(parents=True)
        shard = {"of": matrix.key("gen0"), "index": at, "count": 4}
        told = {
            "key": part,
            "pipeline": "GEN",
            "name": f"DPO_tiny_first_beta0_{at + 1}of4",
            "shard": shard,
            "device": {},
        }
        write_json(work / "step.json", told)
        locks.append(matrix.store.lock(part))
    assert matrix.state("gen0") == "running"
    assert [said["key"] for said in matrix.board().at_work()] == [key("part", 0), key("part", 1)]
    page = shown(open_app(matrix.store.root, "board"))
    assert "2 steps running" in page
    assert f"step=GEN+{matrix.key('gen0')[:12]}" in page
    # one part fails, and the other ends
    for lock in locks:
        lock.release()
    write_json(matrix.store.work(key("part", 0)) / "failure.json", {"reason": "no memory", "exit": 1, "attempt": 1})
    board = matrix.board()
    assert matrix.state("gen0") == "blocked"
    (cause,) = board.causes(board.rows)
    assert cause.runs == ["first/DPO_tiny_beta0"]
    assert matrix.key("gen0") in cause.blocked


def test_services_are_listed(matrix, open_app):
    room = Room(matrix.store.root / "services" / "judge-1")
    keeper = room.lock()
    told = {"label": "judge <7B>", "state": "ready", "text": "answers on port 8000", "restarts": 0, "server": 1}
    write_json(room.folder / "state.json", told)
    page = shown(open_app(matrix.store.root, "board"))
    assert "judge &lt;7B&gt;" in page
    assert "for nobody now" in page
    keeper.release()
    assert "judge" not in shown(open_app(matrix.store.root, "board"))


def test_time_left(matrix):
    assert time_left(matrix.store, matrix.board(), 2) is None
    matrix.done("prep", "sft", "dpo0", "gen0", "scored0", seconds=20.0)
    matrix.runs_now("dpo1", 50, seconds=30.0)
    left = time_left(matrix.store, matrix.board(), 1)
    # 30 s of this one, 20 s each of GEN and EVALREWARD of two runs, and the third DPO, by the median of what is timed
    assert left.complete
    assert left.steps == 6
    assert left.seconds == pytest.approx(30 + 5 * 20, abs=2)
    # on many devices no sooner than the longest chain
    assert time_left(matrix.store, matrix.board(), 8).seconds == pytest.approx(30 + 2 * 20, abs=2)
    assert left.text().startswith("about 2m")


def test_no_time_is_told_that_nobody_knows(matrix):
    matrix.done("prep", "sft")
    lock = matrix.runs_now("dpo0")
    left = time_left(matrix.store, matrix.board(), 2)
    assert left.seconds is None
    assert left.text() == "time left for 9 steps: not known yet"
    assert left.untimed == ["DPO", "EVALREWARD", "GEN"]
    matrix.store.unlock(matrix.key("dpo0"), lock)
    # one that takes longer than it ever did, and says nothing
    matrix.done("dpo1", "gen1", "scored1", seconds=5.0)
    matrix.done("dpo2", "gen2", "scored2", "gen0", "scored0", seconds=5.0)
    lock = matrix.store.lock(matrix.key("dpo0"))
    left = time_left(matrix.store, matrix.board(), 2)
    assert left.seconds is None
    assert not left.complete


def test_a_figure_for_the_smaller_part_of_the_rest_is_not_told(matrix):
    matrix.done("prep", "sft")
    matrix.runs_now("dpo0", 50, seconds=30.0)
    left = time_left(matrix.store, matrix.board(), 1)
    # DPO can be told by the one that runs, GEN and EVALREWARD cannot
    assert left.seconds is None
    assert left.untimed == ["DPO", "EVALREWARD", "GEN"]


def test_failed_and_blocked_steps_are_not_waited_for(matrix):
    matrix.done("prep", "sft", "dpo0", "gen0", "scored0", seconds=10.0)
    matrix.failed("dpo1", "no")
    matrix.runs_now("dpo2", 50, seconds=10.0)
    assert time_left(matrix.store, matrix.board(), 1).steps == 3


def test_slots_and_executions(matrix):
    assert slots_of(matrix.store) is None
    for slots in (2, 4):
        matrix.store.append_event({"event": "plan", "slots": slots})
    matrix.store.append_event({"event": "note", "text": "\u00e4"})
    assert slots_of(matrix.store) == 4
    there = os.stat(matrix.store.root)
    who = {**identity(), "host": os.uname().nodename, "folder": [there.st_dev, there.st_ino]}
    write_json(matrix.store.root / "executing" / "a.json", who)
    write_json(matrix.store.root / "executing" / "b.json", {**who, **GONE})
    (matrix.store.root / "executing" / "c.json").write_text("{")
    assert executions(matrix.store) == 1
    assert (matrix.store.root / "executing" / "b.json").exists()


def test_several_plans_the_busy_one_first(tmp_path, open_app):
    first = Matrix(tmp_path, 1)
    lock = first.runs_now("prep")
    other = Matrix(tmp_path, 2, tag="second", tasks="more.yaml")
    os.utime(next(iter(first.store.plans.glob("tasks-*"))), (1, 1))
    assert [row.tag for row in other.board().rows] == ["first", "second", "second"]
    first.store.unlock(first.key("prep"), lock)
    assert [row.tag for row in other.board().rows] == ["second", "second", "first"]
    page = shown(open_app(first.store.root, "board", tag="second"))
    assert "2 runs" in page
    assert "more.yaml" in page
    assert "tasks.yaml" not in page


def test_filters_and_pages(tmp_path, open_app):
    many = Matrix(tmp_path, 120)
    many.done("prep", "sft", "dpo7", "gen7", "scored7")
    many.failed("dpo3", "no")
    app = open_app(many.store.root, "board")
    page = shown(app)
    assert page.count('<th scope="row">') == 50
    assert "50 of 120 runs" in page
    page = shown(open_app(many.store.root, "board", board_state="failed"))
    assert page.count('<th scope="row">') == 1
    assert "beta3<" in page
    page = shown(open_app(many.store.root, "board", board_state="unfinished", board_page="3"))
    assert page.count('<th scope="row">') == 19
    page = shown(open_app(many.store.root, "board", board_find="BETA7"))
    # 7, 70 to 79
    assert page.count('<th scope="row">') == 11
    page = shown(open_app(many.store.root, "board", board_state="nonsense", board_page="99"))
    assert page.count('<th scope="row">') == 50


def test_a_store_without_plan_shows_its_runs(tmp_path, open_app):
    store = Store(tmp_path / ".cdpo")
    made = [finish(store, "SFT", "tiny", key("sft")), finish(store, "GEN", "tiny", key("gen"))]
    record(store, "old", "SFT_tiny", "SFT", 0, {}, [*made, key("gone")])
    board = read_board(store, store.read_refs())
    assert not board.has_plan
    assert board.stages == ["SFT", "GEN", "not here"]
    assert board.cell(board.rows[0], "not here").state == "missing"
    app = open_app(store.root, "board")
    assert "SFT_<wbr>tiny" in shown(app)
    assert any("has no plan" in each.value for each in app.markdown)


def test_an_empty_store_and_a_damaged_plan(tmp_path, open_app):
    store = Store(tmp_path / ".cdpo")
    store.plans.mkdir(parents=True)
    app = open_app(store.root, "board")
    assert not app.exception
    assert any("cdpo prep" in each.value for each in app.code)
    (store.plans / "tasks-1.json").write_text("{")
    assert "this plan cannot be read" in shown(open_app(store.root, "board"))


def test_looking_again_reads_no_manifest_twice(matrix, monkeypatch):
    matrix.done("prep", "sft", "dpo0")
    known = Known()
    refs = matrix.store.read_refs()
    before = read_board(matrix.store, refs, known)
    read = []
    monkeypatch.setattr(Store, "manifest", lambda self, path: read.append(path) or {"seconds": 7.0})
    assert read_board(matrix.store, refs, known).steps == before.steps
    assert read == []
    manifest = matrix.store.find(matrix.key("dpo0")) / "manifest.json"
    os.utime(manifest, (1, 1))
    assert read_board(matrix.store, refs, known).steps[matrix.key("dpo0")]["seconds"] == 7.0


def test_the_stored_playground(playground, open_app):
    page = shown(open_app(playground / ".cdpo", "board"))
    assert "Nothing is running" in page
    assert "cdpo-mark failed" not in page


@pytest.mark.slow
def test_a_real_execution_is_seen_from_its_first_step_to_its_last(tmp_path, open_app):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tasks.yaml").write_text(
        "experiments:\n  - {tag: live, pipelines: [SFT, GEN], model: [tiny], dataset: [playground], seed: [0],\n"
        "     tasks: [{pipeline: SFT}]}\n"
        "defaults:\n  SFT: {num_train_epochs: 1}\n  GEN: {max_new_tokens: 8, limit: 20}\n"
    )
    store = Store(tmp_path / ".cdpo")
    command = [sys.executable, "-m", "cdpo.cli", "execute", "--display", "plain"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        seen = set()
        while process.poll() is None:
            board = read_board(store, store.read_refs(whole=False) if store.refs.is_dir() else [])
            seen |= {said["state"] for said in board.steps.values()}
            if "share" not in seen and any(board.share(each) for each in board.steps):
                seen.add("share")
                page = shown(open_app(store.root, "board"))
                assert "1 step running" in page
                assert "cpu 0" in page
            time.sleep(0.2)
    assert process.returncode == 0
    assert {"waiting", "running", "done", "share"} <= seen
    assert "3 of 3 steps done" in shown(open_app(store.root, "board"))
