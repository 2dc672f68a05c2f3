"""The first screen, on whatever there is; the front page keeps what its address says."""

import subprocess
import sys

import pytest
from streamlit.testing.v1 import AppTest

from cdpo.report.index import FILE
from cdpo.store import Store
from tests.conftest import ROOT, run_cdpo, write_project

APP = str(ROOT / "viewer" / "app.py")


def opened(monkeypatch, store, **url):
    import streamlit as st

    monkeypatch.setenv("CDPO_STORE", str(store))
    st.cache_data.clear()
    st.cache_resource.clear()
    app = AppTest.from_file(APP, default_timeout=60)
    for name, value in url.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, app.exception
    return app


@pytest.mark.fault(30)
def test_the_first_screen_is_results_where_nothing_runs(monkeypatch, playground):
    app = opened(monkeypatch, playground / ".cdpo", tag="first")
    assert app.title[0].value == "Results"
    assert app.multiselect(key="tag").value == ["first"]
    assert app.query_params["tag"] == "first"


@pytest.mark.fault(30)
def test_the_first_screen_is_the_board_where_a_step_is_being_made(monkeypatch, tmp_path):
    store = Store(tmp_path / ".cdpo")
    key = "a" * 64
    store.work(key).mkdir(parents=True)
    store.refs.mkdir()
    lock = store.lock(key)
    try:
        assert opened(monkeypatch, store.root).title[0].value == "Board"
    finally:
        store.unlock(key, lock)
    assert opened(monkeypatch, store.root).title[0].value == "Results"


@pytest.mark.fault(30)
def test_where_there_is_nothing_it_tells_what_to_run(monkeypatch, tmp_path):
    app = opened(monkeypatch, tmp_path / "none")
    assert app.title[0].value == "Nothing to show yet"
    assert app.main.code[0].value == "cdpo prep\ncdpo execute"


def test_a_damaged_run_is_told_in_words(monkeypatch, playground, tmp_path):
    import shutil

    shutil.copytree(playground / ".cdpo", tmp_path / ".cdpo")
    ref = next((tmp_path / ".cdpo" / "refs" / "first").glob("*.json"))
    ref.write_text("{")
    app = opened(monkeypatch, tmp_path / ".cdpo")
    said = " ".join([each.value for each in (*app.code, *app.text)])
    assert f"{ref}: damaged" in said
    assert "cdpo prep" in said
    assert app.multiselect(key="tag").options == ["first", "sweep"]


def test_a_viewer_that_others_reach_opens_no_namespace_that_its_address_names(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("CDPO_HUB", raising=False)
    app = opened(monkeypatch, tmp_path, hub="somebody")
    assert app.title[0].value == "This cannot be shown"
    assert "CDPO_HUB" in app.text[0].value


def test_help_is_light():
    code = "import sys\nfrom cdpo.cli import cli\ntry: cli(['view', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('streamlit', 'torch', 'pandas', 'altair') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_execute_leaves_results_worked_out(tmp_path):
    tasks = "tag: t\npipelines: [SFT]\nmodel: [tiny]\ndataset: [playground]\ntasks: [{pipeline: SFT, max_steps: 1}]\n"
    write_project(tmp_path, tasks, datasets="playground: {rule: playground, gold: playground, seed: 1, limit: 40}\n")
    run_cdpo("execute", cwd=tmp_path)
    assert (tmp_path / ".cdpo" / FILE).exists()
    from cdpo.report import collect as module

    def never(*given):
        raise AssertionError("worked out again")

    original, module._collect = module._collect, never
    try:
        (run,) = module.collect(tmp_path / ".cdpo")["runs"]
    finally:
        module._collect = original
    assert run["metrics"]["loss"]["n"] > 0
