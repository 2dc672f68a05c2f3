"""The test Hub answers as the real clients expect, fails as it is told to, and outlives kill -9.

The clients are processes of their own (hub_clients.py, hub_libraries.py), since they read their settings on import.
"""

import functools
import hashlib
import http.client
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hub.hub_faults import Fault, faults_done, tell_faults
from tests.hub.hub_messages import Account, read_requests
from tests.hub.hub_process import HubProcess
from tests.hub.hub_repos import Repos
from tests.hub.hub_server import ACCOUNTS, WRITER, Hub
from tests.hub.hub_store import Store, broken

Served = Hub | HubProcess
COMMIT = "/commit/main"


def start_client(
    hub: Served, folder: Path, *words: str, module: str = "hub_clients", token: str = WRITER
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"tests.hub.{module}", *words]
    told = hub.environment(folder / "cache", token)
    return subprocess.Popen(command, cwd=ROOT, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_client(hub: Served, folder: Path, *words: str, **more: str) -> str:
    """What it printed; a client that fails fails the test."""
    process = start_client(hub, folder, *words, **more)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def wait_until(done: Callable[[], bool], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


def texts(folder: Path, repo: str = "ada/m") -> dict[str, bytes]:
    """The files of the newest commit, as they lie in the folder of a Hub."""
    store = Store(folder)
    namespace, name = repo.split("/")
    told = store.read_json(f"repos/models/{namespace}/{name}.json")
    tree = store.read_json(f"commits/{told['branches']['main']}.json")["tree"]
    return {path: store.blob(entry["sha256"]).read_bytes() for path, entry in tree.items() if path[0] != "."}


def make_repo(folder: Path, repo: str = "ada/m") -> None:
    """In a folder that no server has yet, or that only this process serves."""
    store = Store(folder)
    namespace, name = repo.split("/")
    Repos(store).create("models", namespace, name, ACCOUNTS[WRITER], {}, "")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Over DIR/state. It makes no mistakes, and keeps no file that is not whole."""
    with Hub(tmp_path / "state") as hub:
        yield hub
    assert hub.errors == []
    assert broken(hub.folder) == []


@pytest.mark.parametrize("name", ["repos", "revisions", "accounts", "collections", "parquet", "at_once"])
def test_clients_find_what_they_expect(name: str, hub: Hub, tmp_path: Path) -> None:
    run_client(hub, tmp_path, name)


def test_files_come_and_go(hub: Hub, tmp_path: Path) -> None:
    run_client(hub, tmp_path, "files", str(tmp_path / "up"))
    sent = [request.path for request in hub.requests if request.method == "PUT"]
    assert len(sent) == len(set(sent)) == 2  # the large files, once each; an empty one goes into the commit


def test_lists_come_in_pages(tmp_path: Path) -> None:
    with Hub(tmp_path / "state", page=3) as hub:
        run_client(hub, tmp_path, "pages")
    assert hub.errors == []
    assert sum("cursor=" in request.path for request in hub.requests) >= 6


def test_large_files_come_in_parts(tmp_path: Path) -> None:
    with Hub(tmp_path / "state", part=1000) as hub:
        run_client(hub, tmp_path, "parts")
    assert hub.errors == []
    assert sorted(len(request.body) for request in hub.requests if request.method == "PUT") == [120, *[1000] * 5]
    assert list((hub.folder / "parts").iterdir()) == []


@pytest.mark.slow
def test_datasets_are_pushed_and_loaded(hub: Hub, tmp_path: Path) -> None:
    run_client(hub, tmp_path, "rows", module="hub_libraries")
    ranges = [request for request in hub.requests if request.header("range")]
    assert all(request.status == 206 for request in ranges)
    assert ranges


@pytest.mark.slow
def test_models_and_adapters_are_pushed_and_loaded(hub: Hub, tmp_path: Path) -> None:
    run_client(hub, tmp_path, "models", module="hub_libraries")


def test_a_refused_commit_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    make_repo(hub.folder)
    statuses = [409, 412, 429, 500, 503]
    for status in statuses:
        hub.faults.add("status", "POST", COMMIT, status=status, headers={"Retry-After": "10"})
    run_client(hub, tmp_path, "upload_refused", "ada/m", "x.txt", *map(str, statuses))
    assert [fault.done for fault in hub.faults.added] == [1] * 5
    assert texts(hub.folder) == {}
    run_client(hub, tmp_path, "upload", "ada/m", "x.txt", "now")
    assert texts(hub.folder) == {"x.txt": b"now"}


def test_the_clients_wait_as_long_as_they_are_told(hub: Hub, tmp_path: Path) -> None:
    """Before a commit they try again: 1 s after a 500, what Retry-After says (and 1 s) after a 429."""
    make_repo(hub.folder)
    hub.faults.add("status", "POST", "/preupload/", status=429, headers={"Retry-After": "2"})
    hub.faults.add("status", "PUT", "^/lfs/", status=500)
    start = time.monotonic()
    run_client(hub, tmp_path, "upload", "ada/m", "x.bin", "bytes")
    assert time.monotonic() - start > 4
    told = [(request.method, request.status) for request in hub.requests]
    assert told == [
        ("POST", 429),
        ("POST", 200),
        ("POST", 200),
        ("PUT", 500),
        ("PUT", 200),
        ("POST", 200),
        ("POST", 200),
    ]
    assert texts(hub.folder) == {"x.bin": b"bytes"}


def test_a_fault_comes_as_often_as_it_is_told(hub: Hub) -> None:
    fault = hub.faults.add("status", "GET", "^/api/models", status=503, skip=1, times=2)
    assert [get(hub, "/api/models")[0] for _ in range(5)] == [200, 503, 503, 200, 200]
    assert get(hub, "/api/datasets")[0] == 200
    assert (fault.seen, fault.done) == (5, 2)


def ask(hub: Hub, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """A request without a client, of the account ada: the status and the body. A list is sent as the lines of a commit,
    an iterator in chunks."""
    line = http.client.HTTPConnection("127.0.0.1", hub.server_address[1], timeout=30)
    if isinstance(body, list):
        body = b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in body)
    line.request(method, path, body, {"Authorization": f"Bearer {WRITER}", **(headers or {})})
    answer = line.getresponse()
    said = answer.status, answer.read()
    line.close()
    return said


def get(hub: Hub, path: str, **headers: str) -> tuple[int, bytes]:
    return ask(hub, "GET", path, headers=headers)


def test_what_the_clients_never_send(hub: Hub) -> None:
    make_repo(hub.folder)
    sha = hashlib.sha256(b"large").hexdigest()
    commit, header = "/api/models/ada/m/commit/main", ("header", {"summary": "x"})
    assert ask(hub, "PUT", f"/lfs/{sha}", b"others")[0] == 400
    large = {"path": "x.bin", "algo": "sha256", "oid": sha, "size": 5}
    assert ask(hub, "POST", commit, [header, ("lfsFile", large)])[0] == 400
    assert ask(hub, "PUT", f"/lfs/{sha}", iter([b"lar", b"ge"]))[0] == 200
    assert ask(hub, "POST", commit, [header, ("lfsFile", {**large, "size": 6})])[0] == 400
    small = {"path": "a/../b", "content": "YQ==", "encoding": "base64"}
    assert ask(hub, "POST", commit, [header, ("file", small)])[0] == 400
    assert ask(hub, "POST", commit, [("lfsFile", large)])[0] == 400
    assert texts(hub.folder) == {}
    # a file that stays as it is was changed by the commit that made it
    made = [ask(hub, "POST", commit, [header, ("lfsFile", large)]) for _ in range(2)]
    first, second = (json.loads(body)["commitOid"] for _, body in made)
    assert first != second
    (told,) = json.loads(ask(hub, "POST", "/api/models/ada/m/paths-info/main", b"paths=x.bin&expand=true")[1])
    assert told["lastCommit"]["id"] == first


def test_parts_of_files(hub: Hub, tmp_path: Path) -> None:
    make_repo(hub.folder)
    run_client(hub, tmp_path, "upload", "ada/m", "x.txt", "0123456789")
    path = "/ada/m/resolve/main/x.txt"
    for asked, found in [("0-3", b"0123"), ("8-", b"89"), ("-3", b"789"), ("5-100", b"56789")]:
        assert get(hub, path, Range=f"bytes={asked}") == (206, found)
    assert get(hub, path, Range="bytes=10-")[0] == 416
    assert ask(hub, "HEAD", path) == (200, b"")


def test_a_lost_connection_of_a_commit_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    make_repo(hub.folder)
    fault = hub.faults.add("reset-upload", "POST", COMMIT)
    run_client(hub, tmp_path, "upload_refused", "ada/m", "x.txt", "0")
    assert (fault.done, texts(hub.folder)) == (1, {})
    cut = hub.requests[-1]
    assert (cut.status, len(cut.body)) == (None, int(cut.header("content-length") or 0) // 2)


def test_an_upload_that_is_cut_comes_again(hub: Hub, tmp_path: Path) -> None:
    make_repo(hub.folder)
    hub.faults.add("reset-upload", "PUT", "^/lfs/", times=2)
    run_client(hub, tmp_path, "upload", "ada/m", "x.bin", "bytes" * 10**4)
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert [len(request.body) for request in puts] == [25_000, 25_000, 50_000]
    assert texts(hub.folder) == {"x.bin": b"bytes" * 10**4}


@pytest.mark.slow
def test_an_upload_that_is_cut_again_and_again_fails(hub: Hub, tmp_path: Path) -> None:
    make_repo(hub.folder)
    fault = hub.faults.add("reset-upload", "PUT", "^/lfs/", times=100)
    process = start_client(hub, tmp_path, "upload", "ada/m", "x.bin", "bytes")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "httpx2" in said
    assert fault.done == 6
    assert texts(hub.folder) == {}


def test_a_lost_answer_of_a_commit_is_a_commit(hub: Hub, tmp_path: Path) -> None:
    make_repo(hub.folder)
    hub.faults.add("lose-answer", "POST", COMMIT)
    run_client(hub, tmp_path, "upload_refused", "ada/m", "x.txt", "0")
    assert texts(hub.folder) == {"x.txt": b"text" * 1000}


def test_a_download_that_is_cut_comes_again(hub: Hub, tmp_path: Path) -> None:
    make_repo(hub.folder)
    run_client(hub, tmp_path, "upload", "ada/m", "x.bin", "bytes" * 1000)
    fault = hub.faults.add("cut-answer", "GET", "/resolve/")
    run_client(hub, tmp_path, "download", "ada/m", "x.bin", "5000")
    asked = [request.method for request in hub.requests if "/resolve/" in request.path]
    assert (fault.done, asked) == (1, ["HEAD", "GET", "GET"])


def test_a_full_disk_keeps_nothing(hub: Hub, tmp_path: Path) -> None:
    make_repo(hub.folder)
    hub.faults.add("disk-full", "POST", COMMIT)
    hub.faults.add("disk-full", "POST", COMMIT, status=500)
    run_client(hub, tmp_path, "upload_refused", "ada/m", "x.txt", "507", "500")
    hub.faults.add("disk-full", "PUT", "^/lfs/")
    run_client(hub, tmp_path, "upload_refused", "ada/m", "x.bin", "507")
    assert texts(hub.folder) == {}
    assert list(hub.folder.rglob("*.tmp")) == []


def test_a_mistake_of_the_server_is_told(tmp_path: Path) -> None:
    with Hub(tmp_path / "state") as hub:
        assert ask(hub, "POST", "/api/repos/create", b"no json")[0] == 500
    assert "JSONDecodeError" in hub.errors[0]
    assert broken(hub.folder) == ["errors.txt"]


def test_a_slow_answer_comes(hub: Hub) -> None:
    hub.faults.add("hang", "GET", "^/api/models", seconds=1)
    start = time.monotonic()
    assert get(hub, "/api/models") == (200, b"[]")
    assert time.monotonic() - start > 1


def test_every_request_is_kept_as_it_came(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_repo(folder)
    for number in range(2):
        with Hub(folder) as hub:
            run_client(hub, tmp_path, "upload", "ada/m", "ä b.txt", f"a secret {number}")
            kept = read_requests(folder)
            assert [(each.method, each.path, each.body) for each in hub.requests] == [
                (each.method, each.path, each.body) for each in kept[-len(hub.requests) :]
            ]
        with (folder / "requests.jsonl").open("ab") as file:
            file.write(b'{"method": "GE')  # a kill
    found = [each.path.rpartition("/")[0] for each in kept if b"a secret 0" in each.everything()]
    assert found == ["/api/models/ada/m/preupload", "/api/models/ada/m/commit"]
    assert all(each.header("Authorization") == f"Bearer {WRITER}" for each in kept)
    assert len([each for each in kept if b"a secret 1" in each.everything()]) == 2


def test_accounts_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    told = {"hf_bob": Account("bob")}
    with HubProcess(tmp_path / "state", accounts=told) as hub:
        assert "hf_of_the_user" not in str(hub.environment(tmp_path, None))
        assert run_client(hub, tmp_path, "whoami", token="hf_bob") == "bob\n"
    with Hub(tmp_path / "state") as again:
        assert again.routes.accounts == told


def test_a_kill_before_the_commit_leaves_the_repo_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_repo(folder)
    with HubProcess(folder) as hub:
        run_client(hub, tmp_path, "upload", "ada/m", "x.bin", "old")
        tell_faults(folder, Fault("hang", "POST", COMMIT))
        client = start_client(hub, tmp_path, "upload", "ada/m", "x.bin", "new")
        wait_until(lambda: faults_done(folder) == [1])
        port = hub.port
        hub.kill()
        client.communicate(timeout=60)
        assert client.returncode == 1
        assert (texts(folder), broken(folder)) == ({"x.bin": b"old"}, [])
        hub.start()
        assert hub.port == port
        (folder / "faults.json").unlink()
        before = len(read_requests(folder))
        run_client(hub, tmp_path, "upload", "ada/m", "x.bin", "new")
        assert texts(folder) == {"x.bin": b"new"}
        # the large file itself had come before the kill
        assert "PUT" not in [request.method for request in read_requests(folder)[before:]]


def test_a_kill_after_the_commit_keeps_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_repo(folder)
    with HubProcess(folder) as hub:
        tell_faults(folder, Fault("hang-after", "POST", COMMIT))
        client = start_client(hub, tmp_path, "upload", "ada/m", "x.bin", "new")
        wait_until(lambda: texts(folder) == {"x.bin": b"new"})
        hub.kill()
        client.communicate(timeout=60)
        assert client.returncode == 1
        hub.start()
        assert (texts(folder), broken(folder)) == ({"x.bin": b"new"}, [])
        run_client(hub, tmp_path, "download", "ada/m", "x.bin", "3")


def test_a_process_is_told_its_faults_by_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    make_repo(folder)
    with HubProcess(folder) as hub:
        tell_faults(folder, Fault("status", "POST", COMMIT, status=412), Fault("status", "POST", COMMIT, status=503))
        assert faults_done(folder) == [0, 0]
        run_client(hub, tmp_path, "upload_refused", "ada/m", "x.txt", "412", "503")
        assert faults_done(folder) == [1, 1]
        run_client(hub, tmp_path, "upload", "ada/m", "x.txt", "well")
        tell_faults(folder, Fault("status", "POST", COMMIT, status=412))
        assert faults_done(folder) == [0]
        run_client(hub, tmp_path, "upload_refused", "ada/m", "x.txt", "412")


def more_requests(folder: Path, than: int) -> bool:
    return len(read_requests(folder)) > than


@pytest.mark.slow
def test_kills_at_random_leave_whole_commits(tmp_path: Path) -> None:
    """Each commit writes one number into six files: they never differ, and the numbers never go back."""
    folder = tmp_path / "state"
    make_repo(folder)
    drawn, last = random.Random(0), -1
    with HubProcess(folder) as hub:
        for _ in range(8):
            client = start_client(hub, tmp_path, "commits", "ada/m", str(last + 1))
            count = len(read_requests(folder))
            wait_until(functools.partial(more_requests, folder, count))
            time.sleep(drawn.uniform(0, 0.5))
            hub.kill()
            assert client.poll() in (None, 1)
            client.kill()
            client.communicate()
            assert broken(folder) == []
            found = texts(folder)
            if found:
                number = int(found["n.txt"])
                assert number >= last
                assert found == {"n.txt": b"%d" % number, **{f"f{n}.txt": b"%d %d" % (n, number) for n in range(5)}}
                last = number
            hub.start()
    assert last > 0
