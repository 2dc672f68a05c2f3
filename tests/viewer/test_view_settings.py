"""What the viewer is told to show: a `.env` that is broken, a namespace that is none, a store that is not there."""

import os

import pytest


def said(app):
    assert not app.exception
    return " ".join(each.value for room in (app.text, app.title, app.markdown) for each in room)


@pytest.fixture
def env(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    (folder / "viewer").mkdir(parents=True)
    monkeypatch.chdir(folder / "viewer")
    return folder / ".env"


@pytest.mark.parametrize("content", [b"CDPO_HUB=\xff\n", b'HF_HOME="a\x00b"\n'])
def test_an_env_file_that_cannot_be_read_is_named(env, tmp_path, monkeypatch, open_app, content):
    env.write_bytes(content)
    for name in ("HF_HOME", "CDPO_HUB"):
        monkeypatch.delenv(name, raising=False)
    assert f"{env} cannot be read" in said(open_app(tmp_path / "none"))


@pytest.mark.parametrize("content", [b"", b"= =\n'", b"\n\n# CDPO_HUB=ada\n", None])
def test_an_env_file_without_settings_is_none(env, tmp_path, open_app, content):
    env.mkdir() if content is None else env.write_bytes(content)
    assert "There is no store here" in said(open_app(tmp_path / "none"))


@pytest.mark.parametrize("name", ["../ada", "a/b", "a b", "\u202e", "x" * 10_000])
def test_a_namespace_that_is_none_is_told(tmp_path, open_app, name):
    assert "is no name of a user" in said(open_app(tmp_path / "none", hub=name))


def test_a_store_that_is_a_file_or_a_link_to_nothing_is_none(tmp_path, open_app):
    (tmp_path / "file").write_text("")
    os.symlink(tmp_path / "gone", tmp_path / "link")
    for name in ("file", "link"):
        assert "There is no store here" in said(open_app(tmp_path / name))
