"""Which checkpoint is gone on from, whatever state the folders are in; which are removed."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdpo.train.checkpoint_files import FORMAT, MARKER, Checkpoint, choose, folder_of, keep, remove, seal

#: what may have become of a checkpoint, and whether it can be used
STATES = {
    "whole": True,
    "no marker": False,
    "marker cut short": False,
    "marker of something else": False,
    "other layout": False,
    "file missing": False,
    "file cut short": False,
    "file changed": False,
    "file too many": True,
    "empty": False,
    "a file": False,
    "a link": False,
}


def make(room: Path, step: int, state: str = "whole", best: int | None = None) -> Path:
    folder = folder_of(room, step)
    room.mkdir(parents=True, exist_ok=True)
    if state == "a file":
        folder.write_text("no folder")
        return folder
    if state == "a link":
        folder.symlink_to(room / "nowhere")
        return folder
    (folder / "ref").mkdir(parents=True)
    if state == "empty":
        return folder
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "ref" / "adapter.safetensors").write_bytes(b"more" * 100)
    seal(folder, {"step": step, "best": best})
    marker, weights = folder / MARKER, folder / "ref" / "adapter.safetensors"
    if state == "no marker":
        marker.unlink()
    elif state == "marker cut short":
        marker.write_text(marker.read_text()[:-40])
    elif state == "marker of something else":
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "step": step + 1}))
    elif state == "other layout":
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "format": FORMAT + 1}))
    elif state == "file missing":
        weights.unlink()
    elif state == "file cut short":
        weights.write_bytes(b"more" * 99)
    elif state == "file changed":
        weights.write_bytes(b"more" * 99 + b"less")
    elif state == "file too many":
        (folder / ".tmp").write_text("")
    return folder


def anything(checkpoint: Checkpoint) -> str | None:
    return None


folders = st.dictionaries(
    st.integers(0, 12), st.tuples(st.sampled_from(sorted(STATES)), st.none() | st.integers(0, 12)), max_size=5
)


@settings(max_examples=300, deadline=None)
@given(folders, st.integers(0, 13))
def test_the_newest_usable_one_is_chosen_and_all_others_go(made: dict, refused_from: int) -> None:
    room = Path(tempfile.mkdtemp())
    try:
        for step, (state, best) in made.items():
            make(room, step, state, best)
        (room / "reference-train-0123.jsonl").write_text("kept")

        def usable(checkpoint: Checkpoint) -> str | None:
            return "it is too new" if checkpoint.step >= refused_from else None

        whole = {step for step, (state, _) in made.items() if STATES[state]}
        good = [
            step for step in whole if step < refused_from and (made[step][1] in (None, step) or made[step][1] in whole)
        ]
        found, why = choose(room, usable)
        assert (None if found is None else found.step) == max(good, default=None)
        assert all(f"optimiser step {found.step} " not in each for each in why if found is not None)
        keep(room, found)
        left = {path.name for path in room.iterdir()}
        kept = set() if found is None else {found.step} | ({found.best} - {None})
        assert left == {"reference-train-0123.jsonl"} | {f"checkpoint-{step}" for step in kept}
        # and again: the choice stands
        again, _ = choose(room, usable)
        assert (again and again.step) == (found and found.step)
    finally:
        shutil.rmtree(room)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("file cut short", "ref/adapter.safetensors is not what was written"),
        ("file changed", "ref/adapter.safetensors is not what was written"),
        ("file missing", "FileNotFoundError"),
        ("marker cut short", "damaged"),
        ("other layout", f"it has layout {FORMAT + 1}"),
    ],
)
def test_a_damaged_one_is_told(tmp_path: Path, state: str, said: str) -> None:
    make(tmp_path, 3)
    make(tmp_path, 7, state)
    found, (why,) = choose(tmp_path, anything)
    assert found is not None
    assert found.step == 3
    assert why.startswith("the checkpoint of optimiser step 7 cannot be used: ")
    assert said in why


def test_one_that_was_not_finished_is_no_news(tmp_path: Path) -> None:
    make(tmp_path, 7, "no marker")
    assert choose(tmp_path, anything) == (None, [])


def test_one_without_its_best_is_not_used(tmp_path: Path) -> None:
    make(tmp_path, 4, "file changed")
    make(tmp_path, 7, best=4)
    found, why = choose(tmp_path, anything)
    assert found is None
    assert "the best checkpoint so far, of optimiser step 4, is not whole" in why[0]


def test_no_checkpoints_at_all(tmp_path: Path) -> None:
    assert choose(tmp_path / "nowhere", anything) == (None, [])
    keep(tmp_path / "nowhere", None)


def test_what_a_kill_leaves_of_a_removed_one_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path, 7)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(folder)
    assert choose(tmp_path, anything) == (None, [])
