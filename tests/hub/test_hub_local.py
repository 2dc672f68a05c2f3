"""The hub in a folder: branches name whole commits, whoever is killed or comes at the same time."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdpo.config.lock import HubName
from cdpo.hub.local import LocalHub
from cdpo.hub.repos import Files


def listed(paths: Sequence[str]) -> str:
    return "\n".join(paths)


def content(hub: LocalHub, name: HubName) -> dict[str, bytes]:
    found = hub.find(name)
    assert found is not None
    files = (path for path in found[1].rglob("*") if path.is_file())
    return {path.relative_to(found[1]).as_posix(): path.read_bytes() for path in files}


def test_a_branch_holds_just_what_was_published_last(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 1000)
    hub = LocalHub(tmp_path / "hub", "me")
    first: Files = {"model.safetensors": tmp_path / "weights", "config.json": b"{}"}
    one = hub.replace("model", "run", "tag", first)
    two = hub.replace("model", "run", "tag", {"config.json": b"[]"})
    again = hub.replace("model", "run", "other", first)
    assert (one.repo, one.commit == again.commit, one.commit == two.commit) == ("me/run", True, False)
    assert content(hub, HubName("model", "me/run", "tag")) == {"config.json": b"[]"}
    assert content(hub, HubName("model", "me/run", one.commit))["model.safetensors"] == b"w" * 1000
    assert hub.find(HubName("model", "me/run", "main")) is None
    assert hub.branches(HubName("model", "me/run")) == ["other", "tag"]


@pytest.mark.fault(29)
def test_folders_come_and_go_and_the_card_tells_of_them(tmp_path: Path) -> None:
    hub = LocalHub(tmp_path / "hub", "me")
    for tag in ("tag1", "tag2", "tag1"):
        hub.put_folder("dataset", "runs", tag, {"eval.parquet": tag.encode()}, listed)
    there = content(hub, HubName("dataset", "me/runs"))
    assert there == {
        "tag1/eval.parquet": b"tag1",
        "tag2/eval.parquet": b"tag2",
        "README.md": b"tag1/eval.parquet\ntag2/eval.parquet",
    }
    assert hub.carried("dataset", "me/runs", "tag3") is None
    assert hub.carried("dataset", "me/runs", "tag1") == "a folder"
    hub.remove("dataset", "me/runs", "tag1", listed)
    assert content(hub, HubName("dataset", "me/runs")) == {
        "tag2/eval.parquet": b"tag2",
        "README.md": b"tag2/eval.parquet",
    }
    assert not list((tmp_path / "hub/datasets/me/runs/snapshots").glob("*/tag1"))
    assert hub.carried("dataset", "me/runs", "tag2") == "the repository"
    hub.remove("dataset", "me/runs", "tag2", listed)
    assert not (tmp_path / "hub/datasets/me/runs").exists()


@pytest.mark.fault(29)
def test_removing_one_tag_leaves_every_commit_of_another(tmp_path: Path) -> None:
    hub = LocalHub(tmp_path / "hub", "me")
    before = hub.replace("model", "run", "other", {"config.json": b"1"})
    after = hub.replace("model", "run", "other", {"config.json": b"2"})
    mine = hub.replace("model", "run", "tag", {"config.json": b"3"})
    hub.replace("model", "run", "twin", {"config.json": b"2"})
    hub.remove("model", "me/run", "tag", listed)
    hub.remove("model", "me/run", "twin", listed)
    there = {commit.commit: hub.find(HubName("model", "me/run", commit.commit)) for commit in (before, after, mine)}
    assert [each is not None for each in there.values()] == [True, True, False]
    assert hub.branches(HubName("model", "me/run")) == ["other"]


def test_a_collection_holds_a_repository_once(tmp_path: Path) -> None:
    hub = LocalHub(tmp_path, "me")
    for repo in ("me/a", "me/b", "me/a"):
        hub.collect("My models / all", "model", repo)
    (path,) = (tmp_path / "collections").iterdir()
    assert [each["id"] for each in json.loads(path.read_text())["items"]] == ["me/a", "me/b"]


PUSHING = """
import sys
from pathlib import Path
from cdpo.hub.local import LocalHub
hub = LocalHub(Path(sys.argv[1]), "me")
for turn in range(int(sys.argv[3])):
    files = {f"{at}.bin": (sys.argv[2] * 1000).encode() for at in range(20)}
    hub.replace("model", "run", "tag", files)
    hub.put_folder("dataset", "runs", sys.argv[2], {"eval.parquet": sys.argv[2].encode()}, "\\n".join)
"""


def pushing(root: Path, word: str, turns: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PUSHING, str(root), word, str(turns)])


def test_writers_that_are_killed_leave_whole_commits(tmp_path: Path) -> None:
    draw, hub, name = random.Random(0), LocalHub(tmp_path, "me"), HubName("model", "me/run", "tag")
    for number in range(12):
        writer = pushing(tmp_path, f"w{number}", 10_000)
        time.sleep(draw.uniform(0.2, 0.6))
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        if hub.find(name) is not None:
            there = content(hub, name)
            assert sorted(there) == sorted(f"{at}.bin" for at in range(20))
            assert len(set(there.values())) == 1
    assert hub.find(name) is not None


def test_six_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [pushing(tmp_path, f"w{number}", 3) for number in range(6)]
    assert [each.wait() for each in writers] == [0] * 6
    there = content(LocalHub(tmp_path, "me"), HubName("dataset", "me/runs"))
    names = [f"w{number}/eval.parquet" for number in range(6)]
    assert sorted(there) == ["README.md", *names]
    assert there["README.md"].decode().split() == names
