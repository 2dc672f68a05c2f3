"""Any name a user may write becomes one file name, and two names never share one."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdpo.store import Store
from cdpo.store.names import folder_name, key_of, safe_name

NAMES = st.one_of(st.text(max_size=40), st.text(min_size=200, max_size=600), st.text("~/.\\\0\n-_ab", max_size=12))
KEYS = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(NAMES)
def test_a_safe_name_is_a_file_name(name):
    safe = safe_name(name)
    assert safe
    assert not set("/\0\n") & set(safe)
    assert safe[0] != "."
    assert len(safe.encode()) <= 213
    assert safe.isprintable() or not name.isprintable()


@given(NAMES, NAMES)
def test_different_names_stay_different(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)


def test_what_looks_like_an_escaped_name_does_not_collide():
    assert safe_name(safe_name("a/b")) != safe_name("a/b")


@given(NAMES, KEYS)
def test_the_key_is_read_back_from_a_folder(name, key):
    folder = folder_name(name, key)
    assert key_of(folder) == key[:12]
    assert len(folder.encode()) <= 255


@pytest.mark.parametrize("name", ["", "-", "x", "x-123", ".hidden", "x-ABCDEFABCDEF"])
def test_other_folders_are_no_steps(name):
    assert key_of(name) is None


def test_plain_names_are_kept():
    for name in ("DDP_Q0.5B_U0_beta0.1_r0.4_rho0.2_s0", "tag1", "größer", "実験"):
        assert safe_name(name) == name


@settings(deadline=None, max_examples=40)  # every ref is flushed to disk
@given(st.lists(st.tuples(NAMES, NAMES), max_size=6, unique=True), st.data())
def test_refs_are_read_back_as_they_were_written(tmp_path_factory, runs, data):
    store = Store(tmp_path_factory.mktemp("refs"))
    written = {}
    for tag, run in runs:
        if any("\ud800" <= letter <= "\udfff" for letter in tag + run):
            continue
        store.write_ref(tag, run, {"seed": 1, "steps": ["k"]})
        written[tag, run] = {"tag": tag, "name": run, "seed": 1, "steps": ["k"]}
    assert store.read_refs() == [written[each] for each in sorted(written)]
    for tag in {tag for tag, _ in written}:
        assert store.read_refs(tag) == [written[each] for each in sorted(written) if each[0] == tag]
    for tag, run in written:
        store.remove_ref(tag, run)
    assert store.read_refs() == []
    assert not store.refs.exists() or os.listdir(store.refs) == []
