"""Acts of reviewers, in files that only grow: `review/<step's key, 12 digits>/<reviewer>.jsonl` in the store.

    {"time": "2026-11-22T10:00:00.000Z", "reviewer": "Ann", "split": "train", "row": "9f593d6ef365bcf9",
     "content": "5be0...", "vote": "chosen"}

Every reviewer has a file of their own. A line is one act: it sets a vote, a flag, a note, or several of them, for one
row with one content; what it does not name stays as it was, and the last act that names it counts. Lines are never
changed. A line that a killed writer left unfinished is passed over, and the next act begins on a line of its own.
"""

import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdpo.config.canonical import digest
from cdpo.errors import CdpoError, UsageError
from cdpo.files import append_whole, fsync_path
from cdpo.store import Store, locks
from cdpo.store.names import safe_name, short

#: votes on a pair: which response is better
CHOSEN, REJECTED, TIE, BAD = "chosen", "rejected", "tie", "bad"
#: votes on a single response are GOOD and BAD
GOOD = "good"
PAIR = (CHOSEN, REJECTED, TIE, BAD)
SINGLE = (GOOD, BAD)

_TEXTS = ("time", "reviewer", "split", "row", "content")
_CHANGES: dict[str, type | tuple[type, ...]] = {"vote": (str, type(None)), "flag": bool, "note": str}


@dataclass(frozen=True)
class Place:
    """A row with its content: a vote on it says nothing of another text that the row may get."""

    split: str
    row: str
    #: of cdpo.review.rows.content_hash
    content: str


@dataclass(frozen=True)
class Review:
    """What one reviewer says of one row, as it stands."""

    #: None where there is none, or it was withdrawn
    vote: str | None = None
    flag: bool = False
    note: str = ""
    #: of the last act, UTC
    time: str = ""

    @property
    def says_something(self) -> bool:
        return self.vote is not None or self.flag or bool(self.note)


#: what all reviewers say, by row; every row has at least one
Reviews = dict[Place, dict[str, Review]]


def reviewer_name(text: str) -> str:
    """The name as it is kept: trimmed, and written in one way only (`é` may be one letter or two). Raises UsageError
    for a name without any visible letter."""
    name = unicodedata.normalize("NFC", _whole(text)).strip()
    if not any(letter.isprintable() and not letter.isspace() for letter in name):
        raise UsageError("a reviewer needs a name")
    return name


def folder(store: Store, key: str) -> Path:
    """Where the reviews of what a step made are kept."""
    return store.root / "review" / short(key)


def file_of(store: Store, key: str, reviewer: str) -> Path:
    """A reviewer's own file; different names have different files."""
    return folder(store, key) / f"{safe_name(reviewer_name(reviewer))}.jsonl"


def refusal(store: Store) -> str | None:
    """Why nothing can be written here; None where it can."""
    room = store.root / "review"
    place = next((each for each in (room, store.root) if each.exists()), store.root)
    if os.access(place, os.W_OK | os.X_OK):
        return None
    return f"{place} cannot be written by this user, so votes could not be kept"


def append(store: Store, key: str, reviewer: str, place: Place, **changes: Any) -> None:
    """Keep an act, on disk when this returns. `changes`: `vote` (str or None), `flag` (bool), `note` (str).

    Several processes may do so at once. Raises UsageError for a reviewer without a name, CdpoError where the act could
    not be kept.
    """
    name = reviewer_name(reviewer)
    if not changes or not all(isinstance(value, _CHANGES[what]) for what, value in changes.items()):
        raise ValueError(f"no act: {changes}")
    if "note" in changes:
        changes["note"] = _whole(changes["note"])
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    act = {
        "time": now,
        "reviewer": name,
        "split": place.split,
        "row": place.row,
        "content": place.content,
        **changes,
    }
    path = file_of(store, key, name)
    try:
        _append(store, path, json.dumps(act, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise CdpoError(f"{path}: this was not saved: {error.strerror or error}") from error


def _append(store: Store, path: Path, line: bytes) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = locks.acquire(store.locks / f"review-{digest(str(path))[:16]}.lock", wait=True)
    assert lock is not None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            end = os.fstat(descriptor).st_size
            # behind an unfinished line, which stays as it is, the new one begins with a line's end
            torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            append_whole(descriptor, b"\n" + line if torn else line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        lock.release(remove=True)
    if new:
        for each in (path.parent, path.parent.parent):
            fsync_path(each)


def read_acts(path: Path) -> Iterator[dict[str, Any]]:
    """The acts of a file in order. What is no whole act is passed over: a killed writer's line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.split(b"\n"):
        try:
            act = json.loads(line)
        except ValueError:
            continue
        if _is_act(act):
            yield act


def _is_act(act: Any) -> bool:
    if not isinstance(act, dict) or not all(isinstance(act.get(name), str) for name in _TEXTS):
        return False
    return all(isinstance(act[name], kind) for name, kind in _CHANGES.items() if name in act)


def read_reviews(store: Store, key: str) -> Reviews:
    """What all reviewers say of what a step made."""
    return fold(act for path in files(store, key) for act in read_acts(path))


def files(store: Store, key: str) -> list[Path]:
    return sorted(folder(store, key).glob("*.jsonl"))


def fold(acts: Iterable[dict[str, Any]]) -> Reviews:
    """What stands after all acts; those of one reviewer in their order."""
    found: Reviews = {}
    for act in acts:
        of_row = found.setdefault(Place(act["split"], act["row"], act["content"]), {})
        changed = {name: act[name] for name in _CHANGES if name in act}
        of_row[act["reviewer"]] = replace(of_row.get(act["reviewer"], Review()), time=act["time"], **changed)
    kept = {place: {who: each for who, each in of.items() if each.says_something} for place, of in found.items()}
    return {place: of for place, of in kept.items() if of}


def votes(of_row: dict[str, Review]) -> list[str]:
    """The votes on one row, by reviewer's name."""
    return [of_row[who].vote or "" for who in sorted(of_row) if of_row[who].vote is not None]


def _whole(text: str) -> str:
    """`text` without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "replace").decode()
