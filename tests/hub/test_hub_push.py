"""Publishing to the Hugging Face Hub: every change lands, once, whatever goes wrong on the way."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hub.hub_process import HubProcess
from tests.hub.hub_server import READER, WRITER, Hub

Calls = Sequence[Sequence[Any]]


def start(env: Mapping[str, str], room: Path, calls: Calls, **more: Any) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.hub.pushing"],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    process.stdin.write(json.dumps({"room": str(room), "calls": calls, **more}))
    process.stdin.close()
    return process


def end(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout
    assert process.stderr
    said, trouble = process.stdout.read(), process.stderr.read()
    assert process.wait() == 0, trouble
    return json.loads(said)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(tmp_path / "hub") as server:
        yield server


def push(hub: Hub, tmp_path: Path, calls: Calls, token: str = WRITER, **more: Any) -> dict[str, Any]:
    return end(start(hub.environment(tmp_path / "cache", token), tmp_path / "locks", calls, **more))


def tree(hub: Hub, kind: str, id_: str, branch: str) -> dict[str, bytes]:
    """What a branch holds, but for what the Hub puts there itself."""
    from tests.hub.hub_messages import Account

    repo = hub.routes.repos.find(f"{kind}s", *id_.split("/"), Account(id_.split("/")[0]))
    files = repo.commit(branch)["tree"]
    blobs = hub.routes.store
    return {path: blobs.blob(each["sha256"]).read_bytes() for path, each in files.items() if path != ".gitattributes"}


def commits(hub: Hub, kind: str, id_: str, branch: str) -> int:
    from tests.hub.hub_messages import Account

    return len(list(hub.routes.repos.find(f"{kind}s", *id_.split("/"), Account(id_.split("/")[0])).history(branch)))


WEIGHTS = "w" * 20_000


def test_a_branch_becomes_just_these_files_and_a_second_push_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    first = ["replace", "model", "run", "tag1", {"config.json": "{}", "model.safetensors": WEIGHTS, "old.txt": "x"}]
    second = ["replace", "model", "run", "tag1", {"config.json": "[]", "model.safetensors": WEIGHTS}]
    other = ["replace", "model", "run", "tag2", {"config.json": "2"}]
    one, two, again, three = push(hub, tmp_path, [first, second, second, other])["found"]
    assert tree(hub, "model", "ada/run", "tag1") == {"config.json": b"[]", "model.safetensors": WEIGHTS.encode()}
    assert tree(hub, "model", "ada/run", "tag2") == {"config.json": b"2"}
    assert one["repo"] == "ada/run"
    assert one["commit"] != two["commit"] == again["commit"]
    assert three["url"] == f"{hub.url}/ada/run/tree/tag2"
    assert commits(hub, "model", "ada/run", "tag1") == 3  # the first is the Hub's own
    # the same weights are sent once
    assert sum(request.method == "PUT" for request in hub.requests) == 1
    repo = hub.routes.store.read_json("repos/models/ada/run.json")
    assert repo is not None
    assert repo["private"]


def test_six_processes_put_folders_into_one_dataset_at_once(hub: Hub, tmp_path: Path) -> None:
    # each has a room of its own, so that no lock keeps them apart
    pushes = [
        start(
            hub.environment(tmp_path / "cache", WRITER),
            tmp_path / f"locks{number}",
            [["put_folder", "dataset", "runs", f"tag{number}", {"eval.parquet": f"rows {number}"}]],
            owner="lab",
        )
        for number in range(6)
    ]
    found = [end(each)["found"][0] for each in pushes]
    assert all("error" not in each for each in found), found
    there = tree(hub, "dataset", "lab/runs", "main")
    names = [f"tag{number}/eval.parquet" for number in range(6)]
    assert sorted(there) == ["README.md", *names]
    assert there["README.md"].decode().split() == [".gitattributes", *names]
    assert commits(hub, "dataset", "lab/runs", "main") == 7


TROUBLES: dict[str, dict[str, Any]] = {
    "stale": {"do": "status", "path": "/commit/", "status": 412},
    "conflict": {"do": "status", "path": "/commit/", "status": 409},
    "busy": {"do": "status", "path": "/commit/", "status": 429, "headers": {"Retry-After": "1"}},
    "down": {"do": "status", "path": "/commit/", "status": 503, "times": 3},
    "reset": {"do": "reset-upload", "method": "PUT", "path": ""},
    "lost": {"do": "lose-answer", "path": "/commit/"},
    "cut": {"do": "cut-answer", "path": "/commit/"},
    "branch": {"do": "status", "path": "/branch/", "status": 500},
    "create": {"do": "lose-answer", "path": "/repos/create"},
}


@pytest.mark.parametrize("name", TROUBLES)
def test_what_goes_wrong_is_tried_again_and_lands_once(hub: Hub, tmp_path: Path, name: str) -> None:
    fault = hub.faults.add(**TROUBLES[name])
    files = {"config.json": "{}", "model.safetensors": WEIGHTS}
    said = push(hub, tmp_path, [["replace", "model", "run", "tag", files]])
    assert fault.done == fault.times
    assert "error" not in said["found"][0], said
    assert tree(hub, "model", "ada/run", "tag") == {path: text.encode() for path, text in files.items()}
    assert commits(hub, "model", "ada/run", "tag") == 2


@pytest.mark.parametrize(
    "token, said",
    [(READER, "the token may not do that"), ("hf_wrong", "does not know this token"), (None, "there is no token")],
)
def test_who_may_not_write_is_told_so_and_no_secret(hub: Hub, tmp_path: Path, token: str | None, said: str) -> None:
    env = hub.environment(tmp_path / "cache", token)
    found = end(start(env, tmp_path / "locks", [["replace", "model", "run", "tag", {"a": "b"}]], owner="ada"))
    assert said in found["found"][0]["error"]
    assert not found["notes"]
    assert token is None or token not in json.dumps(found)


def test_a_full_disk_at_the_other_side_ends_the_push(hub: Hub, tmp_path: Path) -> None:
    hub.faults.add("disk-full", path="/commit/", times=99)
    (found,) = push(hub, tmp_path, [["replace", "model", "run", "tag", {"a": "b"}]], longest_pause=0.01)["found"]
    assert "HTTP 507" in found["error"]
    assert tree(hub, "model", "ada/run", "tag") == {}


@pytest.mark.fault(29)
def test_what_carries_a_tag_is_taken_back_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    calls = [
        ["replace", "model", "one", "tag1", {"a": "b"}],
        ["replace", "model", "two", "tag1", {"a": "b"}],
        ["replace", "model", "two", "tag2", {"a": "b"}],
        ["put_folder", "dataset", "runs", "tag1", {"eval.parquet": "1"}],
        ["put_folder", "dataset", "runs", "tag2", {"eval.parquet": "2"}],
        *[["remove", "model", f"ada/{name}", "tag1"] for name in ("one", "two", "three")],
        *[["remove", "dataset", "ada/runs", tag] for tag in ("tag1", "tag3", "tag2")],
    ]
    found = push(hub, tmp_path, calls)["found"][5:]
    assert found == ["the repository", "a branch", None, "a folder", None, "the repository"]
    assert tree(hub, "model", "ada/two", "tag2") == {"a": b"b"}
    there = sorted(str(path.relative_to(hub.folder / "repos")) for path in (hub.folder / "repos").rglob("*.json"))
    assert there == ["models/ada/two.json"]


def test_main_of_a_model_lists_its_branches_and_what_others_wrote_there_stays(hub: Hub, tmp_path: Path) -> None:
    calls = [
        ["replace", "model", "run", "tag1", {"a": "b"}],
        *[["index", "run"]] * 2,
        ["replace", "model", "run", "tag2", {"a": "b"}],
        ["index", "run"],
        # somebody's own card, and only then a tag
        ["replace", "model", "theirs", "main", {"README.md": "by hand"}],
        ["replace", "model", "theirs", "tag1", {"a": "b"}],
        ["index", "theirs"],
        ["remove", "model", "ada/theirs", "tag1"],
    ]
    assert push(hub, tmp_path, calls)["found"][-1] == "a branch"
    assert tree(hub, "model", "ada/theirs", "main") == {"README.md": b"by hand"}
    card = tree(hub, "model", "ada/run", "main")["README.md"].decode()
    assert "[tag1]" in card
    assert "[tag2]" in card
    assert "revision='tag1'" in card
    made = [each for each in hub.requests if each.method == "POST" and each.path.endswith("/ada/run/commit/main")]
    assert len(made) == 2, "what is there already is not written again"
    calls = [["remove", "model", "ada/run", tag] for tag in ("tag1", "tag2")]
    assert push(hub, tmp_path, calls[:1])["found"] == ["a branch"]
    assert "tag1" not in tree(hub, "model", "ada/run", "main")["README.md"].decode()
    assert push(hub, tmp_path, calls[1:])["found"] == ["the repository"]


def test_collections_hold_every_repository_once(hub: Hub, tmp_path: Path) -> None:
    made = ["replace", "model", "run", "tag", {"a": "b"}]
    push(hub, tmp_path, [made, *[["collect", "My models", "model", "ada/run"]] * 2])
    (collection,) = [hub.routes.collections.store.read_json(path) for path in _collections(hub)]
    assert [each["id"] for each in collection["items"]] == ["ada/run"]


def _collections(hub: Hub) -> list[str]:
    folder = hub.routes.store.folder
    return [str(path.relative_to(folder)) for path in sorted((folder / "collections").rglob("[!.]*.json"))]


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again(tmp_path: Path) -> None:
    draw = random.Random(0)
    with HubProcess(tmp_path / "hub") as server:
        calls = [
            [
                "replace",
                "model",
                f"run{number}",
                "tag",
                {"config.json": str(number), "model.safetensors": WEIGHTS + str(number)},
            ]
            for number in range(40)
        ]
        pushes = [
            start(server.environment(tmp_path / "cache", WRITER), tmp_path / "locks", part, longest_pause=2.0)
            for part in (calls[::2], calls[1::2])
        ]
        for _ in range(20):
            time.sleep(draw.uniform(0.2, 1.0))
            server.kill()
            server.start()
        found = [each for process in pushes for each in end(process)["found"]]
    assert len(found) == 40
    assert all("error" not in each for each in found), found
    with Hub(tmp_path / "hub") as hub:
        for number in range(40):
            there = tree(hub, "model", f"ada/run{number}", "tag")
            assert there == {"config.json": str(number).encode(), "model.safetensors": (WEIGHTS + str(number)).encode()}
            assert commits(hub, "model", f"ada/run{number}", "tag") == 2
