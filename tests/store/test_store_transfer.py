"""Finished steps of another store, and stores that are copied elsewhere."""

import shutil

import pytest
from store_bench import KEY, finish

from cdpo.errors import UsageError
from cdpo.store import Store
from cdpo.store.removal import evict
from cdpo.store.transfer import import_from

OTHER = "cd" * 32


def test_finished_steps_are_added_once(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    finish(here)
    finish(there)
    finish(there, OTHER, pipeline="DPO")
    done = import_from(here, there)
    assert [path.name for path in done.added] == [f"tiny-{OTHER[:12]}"]
    assert done.present == 1
    assert here.intact(here.find(OTHER, "DPO")) is None
    again = import_from(here, there)
    assert (again.added, again.present) == ([], 2)
    assert not here.working()
    assert not list((here.root / "work").glob(".*"))


def test_runs_come_along_where_all_their_steps_do(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    finish(there)
    there.write_ref("tag", "whole", {"steps": [KEY], "seed": 1})
    there.write_ref("tag", "part", {"steps": [KEY, OTHER]})
    here.write_ref("tag", "mine", {"steps": []})
    assert import_from(here, there).runs == [("tag", "whole")]
    assert [ref["name"] for ref in here.read_refs()] == ["mine", "whole"]
    assert import_from(here, there).runs == []


def test_damaged_and_evicted_steps_are_refused(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    swapped = finish(there)
    (swapped / "out" / "value.txt").write_text("HELLO")
    gone = finish(there, OTHER)
    evict(there, gone)
    done = import_from(here, there)
    assert done.added == []
    assert "its content is not" in done.refused[swapped]
    assert done.refused[gone] == "its weights were evicted"
    assert here.finished() == {}


def test_an_import_brings_evicted_weights_back(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    finish(there)
    evict(here, finish(here))
    assert len(import_from(here, there).added) == 1
    assert not here.is_evicted(here.find(KEY))


def test_another_folder_is_no_store(tmp_path):
    with pytest.raises(UsageError, match="no cdpo store here"):
        import_from(Store(tmp_path / "here"), Store(tmp_path))


def test_a_copied_store_works(tmp_path):
    finish(Store(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    store = Store(tmp_path / "there")
    assert store.intact(store.find(KEY)) is None
    assert store.discard(KEY).is_dir()
