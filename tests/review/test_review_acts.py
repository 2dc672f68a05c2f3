"""The files of reviewers: nothing that was said is lost, whoever writes at once and wherever a writer is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from cdpo.errors import CdpoError, UsageError
from cdpo.review import acts
from cdpo.review.acts import Place, Review, append, file_of, fold, read_acts, read_reviews
from cdpo.store import Store

KEY = "9a60771e0170" + "0" * 52
WHERE = Place("train", "3fa2", "c" * 16)

CHANGES = some.one_of(
    some.fixed_dictionaries({"vote": some.sampled_from([*acts.PAIR, None])}),
    some.fixed_dictionaries({"flag": some.booleans()}),
    some.fixed_dictionaries({"note": some.text(max_size=30)}),
    some.fixed_dictionaries({"vote": some.sampled_from(acts.PAIR), "flag": some.booleans(), "note": some.text()}),
)
#: reviewer, row, what is changed
ACTS = some.lists(some.tuples(some.sampled_from(["Ann", "Bob", "Ann/../Bob"]), some.sampled_from("xyz"), CHANGES))


def place(row: str) -> Place:
    return Place("train", row, "0" * 16)


def expected(done) -> dict:
    """What stands after `done`, kept in the simplest way there is."""
    state: dict = {}
    for who, row, changes in done:
        state.setdefault((row, who), {"vote": None, "flag": False, "note": ""}).update(changes)
    return {key: value for key, value in state.items() if value["vote"] is not None or value["flag"] or value["note"]}


def found(reviews: acts.Reviews) -> dict:
    return {
        (at.row, who): {"vote": each.vote, "flag": each.flag, "note": each.note}
        for at, of in reviews.items()
        for who, each in of.items()
    }


@settings(max_examples=60, deadline=None)
@given(done=ACTS)
def test_what_all_reviewers_said_is_read_back(done, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    for who, row, changes in done:
        append(store, KEY, who, place(row), **changes)
    assert found(read_reviews(store, KEY)) == expected(done)


@settings(max_examples=60, deadline=None)
@given(done=ACTS.filter(len), cut=some.floats(0, 1), after=some.lists(some.tuples(some.sampled_from("xyz"), CHANGES)))
def test_a_file_that_is_cut_anywhere_is_a_prefix_and_goes_on(done, cut, after, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    for _, row, changes in done:
        append(store, KEY, "Ann", place(row), **changes)
    path = file_of(store, KEY, "Ann")
    whole, all_acts = path.read_bytes(), list(read_acts(path))
    assert len(all_acts) == len(done)
    kept = whole[: round(cut * len(whole))]
    path.write_bytes(kept)
    there = list(read_acts(path))
    assert there == all_acts[: len(there)]
    # a line without its end is whole where its last bracket is there
    assert len(there) in (kept.count(b"\n"), kept.count(b"\n") + 1)
    for row, changes in after:
        append(store, KEY, "Ann", place(row), **changes)
    assert path.read_bytes().startswith(kept), "what was there is changed"
    before = [("Ann", row, changes) for _, row, changes in done[: len(there)]]
    assert found(read_reviews(store, KEY)) == expected([*before, *(("Ann", *each) for each in after)])


def test_a_line_that_lost_its_end_alone_is_whole(tmp_path):
    store = Store(tmp_path)
    append(store, KEY, "Ann", WHERE, vote="tie")
    path = file_of(store, KEY, "Ann")
    path.write_bytes(path.read_bytes()[:-1])
    assert [each["vote"] for each in read_acts(path)] == ["tie"]
    append(store, KEY, "Ann", WHERE, vote="bad")
    assert [each["vote"] for each in read_acts(path)] == ["tie", "bad"]


def test_names_that_look_alike_to_a_file_system_stay_apart(tmp_path):
    store = Store(tmp_path / "store")
    names = [
        "Ann",
        "ann ✓",
        "../../etc/passwd",
        "..",
        ".",
        "a/b",
        "a_b",
        "a\\b",
        "名前",
        "x" * 3000,
        "x" * 3001,
        "~",
        "-",
    ]
    for name in names:
        append(store, KEY, name, WHERE, note=name)
    room = acts.folder(store, KEY)
    assert {path.parent for path in acts.files(store, KEY)} == {room}
    assert len(acts.files(store, KEY)) == len(names)
    assert set(tmp_path.rglob("*.jsonl")) == set(acts.files(store, KEY))
    assert {who: each.note for who, each in read_reviews(store, KEY)[WHERE].items()} == {name: name for name in names}


def test_two_names_in_one_file_are_two_reviewers(tmp_path):
    """A file system may take `Ann` and `ANN` for one."""
    store = Store(tmp_path)
    append(store, KEY, "Ann", WHERE, vote="tie")
    append(store, KEY, "ANN", WHERE, vote="bad")
    one, other = acts.files(store, KEY)
    one.write_bytes(one.read_bytes() + other.read_bytes())
    other.unlink()
    assert {who: each.vote for who, each in read_reviews(store, KEY)[WHERE].items()} == {"Ann": "tie", "ANN": "bad"}


def test_one_name_is_written_in_one_way(tmp_path):
    store = Store(tmp_path)
    append(store, KEY, " Be\u0301ne\u0301dicte ", WHERE, vote="tie")
    append(store, KEY, "B\u00e9n\u00e9dicte", WHERE, vote="bad")
    assert [each.vote for each in read_reviews(store, KEY)[WHERE].values()] == ["bad"]
    for nobody in ("", "  ", "\u200b", "\n"):
        with pytest.raises(UsageError, match="name"):
            append(store, KEY, nobody, WHERE, vote="tie")


def test_a_vote_stays_with_its_text(tmp_path):
    store = Store(tmp_path)
    append(store, KEY, "Ann", WHERE, vote="chosen")
    other = Place(WHERE.split, WHERE.row, "d" * 16)
    reviews = read_reviews(store, KEY)
    assert WHERE in reviews
    assert other not in reviews


def test_a_vote_that_is_withdrawn_is_none(tmp_path):
    store = Store(tmp_path)
    append(store, KEY, "Ann", WHERE, vote="chosen", note="why")
    append(store, KEY, "Ann", WHERE, vote=None)
    assert [(each.vote, each.note) for each in read_reviews(store, KEY)[WHERE].values()] == [(None, "why")]
    append(store, KEY, "Ann", WHERE, note="")
    assert read_reviews(store, KEY) == {}


def test_lines_that_are_no_acts_are_passed_over(tmp_path):
    store = Store(tmp_path)
    append(store, KEY, "Ann", WHERE, vote="tie")
    path = file_of(store, KEY, "Ann")
    good = path.read_bytes()
    wrong = [b"null", b"[1]", b"{}", b"\xff\xfe", json.dumps({**json.loads(good), "flag": "yes"}).encode()]
    path.write_bytes(b"\n".join(wrong) + b"\n" + good)
    assert [each["vote"] for each in read_acts(path)] == ["tie"]
    with pytest.raises(ValueError, match="no act"):
        append(store, KEY, "Ann", WHERE, flag="yes")
    with pytest.raises(ValueError, match="no act"):
        append(store, KEY, "Ann", WHERE)


WRITING = """
import sys
from pathlib import Path
from cdpo.review.acts import Place, append
from cdpo.store import Store
store, who, word = Store(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
for at in range(int(sys.argv[4])):
    append(store, "9a60771e0170", who, Place("train", f"{word}{at}", "0" * 16), vote="tie", note=word * 500)
"""


def writing(root: Path, who: str, word: str, count: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", WRITING, str(root), who, word, str(count)])


def test_processes_of_one_reviewer_lose_nothing(tmp_path):
    processes = [writing(tmp_path, "Ann", word, 60) for word in "abc"]
    assert [each.wait(timeout=120) for each in processes] == [0, 0, 0]
    (path,) = acts.files(Store(tmp_path), KEY)
    assert len(list(read_acts(path))) == path.read_bytes().count(b"\n") == 180


def test_a_killed_writer_leaves_what_it_said(tmp_path):
    store = Store(tmp_path)
    for word in "ab":
        process = writing(tmp_path, "Ann", word, 100_000)
        while len(acts.files(store, KEY)) == 0 or f'"row": "{word}20"' not in file_of(store, KEY, "Ann").read_text():
            assert process.poll() is None
        process.kill()
        process.wait()
    append(store, KEY, "Ann", WHERE, vote="tie")
    rows = {place.row for place in read_reviews(store, KEY)}
    assert {f"{word}{at}" for word in "ab" for at in range(20)} <= rows
    assert WHERE.row in rows


def test_a_full_disk_is_told_and_what_was_there_stays(tmp_path, monkeypatch):
    store = Store(tmp_path)
    append(store, KEY, "Ann", WHERE, vote="tie")
    before = file_of(store, KEY, "Ann").read_bytes()
    whole = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:10]))
    with pytest.raises(CdpoError, match="was not saved"):
        append(store, KEY, "Ann", WHERE, vote="bad")
    assert file_of(store, KEY, "Ann").read_bytes() == before


def test_a_store_that_cannot_be_written_says_so(tmp_path, monkeypatch):
    store = Store(tmp_path)
    assert acts.refusal(store) is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert str(tmp_path) in (acts.refusal(store) or "")


def test_fold_counts_the_last_act_of_each(tmp_path):
    base = {"split": "train", "row": "x", "content": "0", "time": "t"}
    reviews = fold(
        [
            {**base, "reviewer": "Ann", "vote": "tie"},
            {**base, "reviewer": "Bob", "vote": "bad"},
            {**base, "reviewer": "Ann", "vote": "chosen", "time": "u"},
        ]
    )
    assert reviews[Place("train", "x", "0")] == {"Ann": Review("chosen", time="u"), "Bob": Review("bad", time="t")}
    assert acts.votes(reviews[Place("train", "x", "0")]) == ["chosen", "bad"]
