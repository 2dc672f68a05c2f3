"""`cdpo view --export`: files that say what the store says, of whatever is in it; or one line of what is wrong."""

import os
import re

import numpy as np
import pytest
from click.testing import CliRunner

from cdpo.cli import cli
from cdpo.errors import CdpoError
from cdpo.store import Store
from cdpo.viewer.export import export
from tests.results.made import PROMPTS, finish, key, record

HOSTILE = "<script>alert(1)</script>$x$*_`"


def scored(store, name, seed=0, method="SFT", params=None, tag="t", table=True):
    steps = [key(method, name, seed), key("EVALREWARD", name, seed)]
    finish(store, method, name, steps[0], seed=seed)
    values = np.random.default_rng([seed, len(name)]).normal(size=len(PROMPTS))
    rows = {"split": "eval", "prompt_id": PROMPTS, "reward_generated": values}
    finish(store, "EVALREWARD", name, steps[1], inputs={"model": {"step": steps[0]}}, table=rows if table else None)
    record(store, tag, f"{name}_s{seed}", method, seed, params or {}, steps)


def test_what_there_is_is_written(playground, tmp_path):
    made = export(playground / ".cdpo", tmp_path / "out", "first", ())
    assert [path.name for path in made] == ["index.html", "curves.html", "compare.html"]
    for path in made:
        text = path.read_text()
        assert "Content-Security-Policy" in text
        assert "<script" not in text
        assert not re.search(r'(?:src|href)="(?!data:|index|curves|compare)', text)
        assert str(playground) not in text
    assert sorted(os.listdir(tmp_path / "out")) == ["compare.html", "curves.html", "index.html"]


@pytest.mark.parametrize(
    ("make", "pages"),
    [
        (lambda store: scored(store, "one"), 2),
        (lambda store: [scored(store, "one", table=False), scored(store, "two", table=False)], 3),
        (lambda store: [scored(store, HOSTILE), scored(store, "two", params={"beta": HOSTILE})], 3),
        (lambda store: [scored(store, f"r{at}", params={"beta": at}) for at in range(50)], 3),
        (lambda store: record(store, "t", "one_s0", "SFT", 0, {}, [key("gone")]), 2),
        (lambda store: [record(store, "t", f"{name}_s0", "SFT", 0, {}, [key(name)]) for name in "ab"], 3),
    ],
    ids=["one", "without-scores", "hostile", "fifty", "missing-parents", "not-begun"],
)
def test_whatever_is_in_the_store(tmp_path, make, pages):
    store = Store(tmp_path / ".cdpo")
    make(store)
    made = export(store.root, tmp_path / "out", None, ())
    assert len(made) == pages
    for path in made:
        assert "<script" not in path.read_text()


def test_what_cannot_be_compared_writes_nothing(tmp_path):
    store = Store(tmp_path / ".cdpo")
    for seed in (0, 1):
        scored(store, "one", seed)
        scored(store, "one", seed, tag="u")
    for two, told in {
        ("t/one_s0", "t/one_s0"): "with itself",
        ("one_s0", "t/one_s1"): "several",
        ("t/one_s0", "nope"): "no run 'nope'",
        ("", ""): "no run ''",
    }.items():
        with pytest.raises(CdpoError, match=told):
            export(store.root, tmp_path / "out", None, two)
    assert not (tmp_path / "out").exists()
    assert len(export(store.root, tmp_path / "out", None, ("t/one", "u/one_s1"))) == 3


def test_nothing_is_written_where_a_page_cannot_be_made(tmp_path, monkeypatch):
    store = Store(tmp_path / ".cdpo")
    scored(store, "one")
    scored(store, "two")

    def broken(*_):
        return {"title": "Comparison", "compared": {"metrics": 3}}

    monkeypatch.setattr("cdpo.viewer.export._compared", broken)
    with pytest.raises(TypeError):
        export(store.root, tmp_path / "out", None, ())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--export", "file"], "File exists"),
        (["--export", "file/below"], "Not a directory"),
        (["--export", "out", "--tag", "none"], "no runs under the tag 'none'"),
        (["--export", "out", "--compare", "a", "b"], "no run 'a'"),
        (["--export", "out", "--store", "nowhere"], "no runs to export"),
        (["--export", "out", "--hub", "ada"], "no --hub"),
        (["--compare", "a", "b"], "of --export"),
        (["--port", "0"], "--port"),
        (["--port", "x"], "--port"),
    ],
)
def test_trouble_is_one_line(tmp_path, monkeypatch, words, told):
    scored(Store(tmp_path / ".cdpo"), "one")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["view", *words])
    # the command itself prints these in one line, and click its own
    assert isinstance(done.exception, CdpoError | OSError | SystemExit)
    assert done.exit_code
    assert told in (done.output if isinstance(done.exception, SystemExit) else str(done.exception))
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "out").exists()
