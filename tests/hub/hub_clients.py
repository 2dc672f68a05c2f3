"""Clients of the test Hub, each a process that knows no other Hub: `python -m tests.hub.hub_clients NAME [WORD ...]`.

Each function here is one such process; it fails where the Hub does not answer as its clients expect.
"""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.hub_server import OTHER, READER, WRITER


@contextmanager
def refused(status: int) -> Iterator[None]:
    with pytest.raises(HfHubHTTPError) as caught:
        yield
    assert caught.value.response.status_code == status, caught.value


def put(api: HfApi, repo: str, path: str, data: bytes, **more: object) -> str:
    """Upload one file; the id of the commit."""
    return api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id=repo, **more).oid


def repos() -> None:
    api = HfApi()
    assert api.whoami()["name"] == "ada"
    for kind, prefix in [("model", ""), ("dataset", "datasets/"), ("space", "spaces/")]:
        more = {"space_sdk": "static"} if kind == "space" else {}
        first = api.create_repo("ada/one", repo_type=kind, **more)
        assert first == f"{api.endpoint}/{prefix}ada/one"
        assert (first.repo_id, first.repo_type) == ("ada/one", kind)
        assert api.create_repo("ada/one", repo_type=kind, exist_ok=True, **more) == first
        with refused(409):
            api.create_repo("ada/one", repo_type=kind, **more)
        told = api.repo_info("ada/one", repo_type=kind)
        assert (told.id, told.private, [each.rfilename for each in told.siblings]) == (
            "ada/one",
            False,
            [".gitattributes"],
        )
    assert api.create_repo("two").repo_id == "ada/two"
    assert api.create_repo("lab/three", private=True).repo_id == "lab/three"
    assert api.model_info("lab/three").private
    assert [each.id for each in api.list_models()] == ["ada/one", "ada/two", "lab/three"]
    assert [each.id for each in api.list_models(author="ada", search="TW")] == ["ada/two"]
    put(api, "ada/two", "README.md", b"---\nlicense: mit\ntags:\n- cdpo\n---\n# Two\n")
    assert [each.id for each in api.list_models(filter="cdpo")] == ["ada/two"]
    assert api.model_info("ada/two").card_data["license"] == "mit"
    with pytest.raises(ValueError, match="Invalid metadata"):
        put(api, "ada/two", "README.md", b"---\ntags: [\n---\n")
    api.update_repo_settings("ada/two", private=True)
    assert api.model_info("ada/two").private
    api.move_repo("ada/two", "lab/four")
    assert not api.repo_exists("ada/two")
    assert api.file_exists("lab/four", "README.md")
    api.delete_repo("lab/four")
    api.delete_repo("lab/four", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("lab/four")
    for missing in ("lab/four", "nobody/x", "gpt2"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(missing)


def files(folder: Path) -> None:
    api = HfApi()
    api.create_repo("ada/m")
    put(api, "ada/m", "notes/a b.txt", "täxt".encode())
    first = put(api, "ada/m", "weights.bin", b"\0" * 3000)
    assert put(api, "ada/m", "weights.bin", b"\0" * 3000) == first  # already there: no commit
    assert put(api, "ada/m", "notes/a b.txt", "täxt".encode()) == first
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "c.json").write_text("{}")
    (folder / "d.safetensors").write_bytes(b"d" * 10)
    (folder / "empty.txt").write_bytes(b"")
    folded = api.upload_folder(folder_path=folder, repo_id="ada/m", path_in_repo="notes", commit_message="a folder").oid
    tree = {each.path: each for each in api.list_repo_tree("ada/m", recursive=True, expand=True)}
    assert list(tree) == sorted(tree)
    there = {".gitattributes", "notes", "notes/a b.txt", "notes/d.safetensors", "notes/empty.txt", "notes/sub"}
    assert set(tree) == there | {"notes/sub/c.json", "weights.bin"}
    assert tree["weights.bin"].lfs.size == 3000
    assert tree["weights.bin"].last_commit.oid == first
    assert tree["notes"].last_commit.title == "a folder"
    # as `git hash-object` names the bytes "{}"
    assert tree["notes/sub/c.json"].blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert [each.path for each in api.list_repo_tree("ada/m", "notes/sub")] == ["notes/sub/c.json"]
    assert {each.path for each in api.list_repo_tree("ada/m")} == {".gitattributes", "notes", "weights.bin"}
    found = api.get_paths_info("ada/m", ["notes", "weights.bin", "no such"], expand=True)
    assert [each.path for each in found] == ["notes", "weights.bin"]
    told = api.model_info("ada/m", files_metadata=True)
    assert {each.rfilename: each.size for each in told.siblings}["notes/d.safetensors"] == 10
    assert Path(hf_hub_download("ada/m", "notes/a b.txt")).read_text(encoding="utf-8") == "täxt"
    assert Path(hf_hub_download("ada/m", "weights.bin", revision=first)).stat().st_size == 3000
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ada/m", "no such")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("ada/m", "no/such"))
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ada/m", "weights.bin", revision="no-such")
    changes = [
        CommitOperationAdd("e.txt", b"e"),
        CommitOperationCopy("weights.bin", "copied.bin"),
        CommitOperationCopy("notes/sub/c.json", "copied.json"),
        CommitOperationDelete("notes/"),
        CommitOperationDelete("weights.bin"),
    ]
    api.create_commit("ada/m", changes, commit_message="many at once", parent_commit=folded)
    assert set(api.list_repo_files("ada/m")) == {".gitattributes", "copied.bin", "copied.json", "e.txt"}
    api.delete_file("copied.json", "ada/m")
    with pytest.raises(EntryNotFoundError):
        api.delete_file("copied.json", "ada/m")
    put(api, "ada/m", "f/g.txt", b"g")
    api.delete_folder("f", "ada/m")
    assert set(api.list_repo_files("ada/m")) == {".gitattributes", "copied.bin", "e.txt"}
    with refused(400):
        put(api, "ada/m", "e.txt/f.txt", b"a file in a file")
    with refused(400):  # pull requests are not known
        put(api, "ada/m", "h.txt", b"h", create_pr=True)


def revisions() -> None:
    api = HfApi()
    api.create_repo("ada/d", repo_type="dataset")
    one = put(api, "ada/d", "x.txt", b"1", repo_type="dataset")
    api.create_tag("ada/d", tag="v1", tag_message="the first", repo_type="dataset")
    api.create_branch("ada/d", branch="exp/a", repo_type="dataset")
    two = put(api, "ada/d", "x.txt", b"2", repo_type="dataset")
    other = put(api, "ada/d", "x.txt", b"3", repo_type="dataset", revision="exp/a")
    refs = api.list_repo_refs("ada/d", repo_type="dataset", include_pull_requests=True)
    assert {each.name: each.target_commit for each in refs.branches} == {"main": two, "exp/a": other}
    assert [(each.ref, each.target_commit) for each in refs.tags] == [("refs/tags/v1", one)]
    for revision, text in [("v1", "1"), (one, "1"), ("main", "2"), ("exp/a", "3"), (None, "2")]:
        there = snapshot_download("ada/d", repo_type="dataset", revision=revision)
        assert (Path(there) / "x.txt").read_text() == text
    assert api.dataset_info("ada/d", revision="v1").sha == one
    with refused(409):
        api.create_tag("ada/d", tag="v1", repo_type="dataset", revision=two)
    api.create_tag("ada/d", tag="v1", repo_type="dataset", exist_ok=True)
    with refused(409):
        api.create_branch("ada/d", branch="exp/a", repo_type="dataset")
    api.create_branch("ada/d", branch="exp/a", repo_type="dataset", exist_ok=True)
    api.create_branch("ada/d", branch="old", revision="v1", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.create_tag("ada/d", tag="v2", repo_type="dataset", revision="no-such")
    with refused(412):  # of a parent that is no longer the newest
        put(api, "ada/d", "x.txt", b"4", repo_type="dataset", parent_commit=one)
    assert [each.commit_id for each in api.list_repo_commits("ada/d", repo_type="dataset")][:2] == [two, one]
    api.delete_tag("ada/d", tag="v1", repo_type="dataset")
    api.delete_branch("ada/d", branch="exp/a", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("ada/d", tag="v1", repo_type="dataset")
    refs = api.list_repo_refs("ada/d", repo_type="dataset")
    assert ([each.name for each in refs.branches], refs.tags) == (["main", "old"], [])
    api.super_squash_history("ada/d", repo_type="dataset")
    assert len(api.list_repo_commits("ada/d", repo_type="dataset")) == 1
    assert set(api.list_repo_files("ada/d", repo_type="dataset")) == {".gitattributes", "x.txt"}


def at_once() -> None:
    """Commits of eight threads, none of which names its parent."""
    api = HfApi()
    api.create_repo("ada/m")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: put(api, "ada/m", f"{number}.txt", b"x" * number), range(1, 17)))
    assert {each.commit_id for each in api.list_repo_commits("ada/m")} >= set(made)
    assert set(api.list_repo_files("ada/m")) == {".gitattributes", *(f"{number}.txt" for number in range(1, 17))}
    head = api.model_info("ada/m").sha
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda number: try_put(api, f"{number}.txt", head), range(17, 25)))
    assert sorted(done) == [200] + [412] * 7


def try_put(api: HfApi, path: str, parent: str) -> int:
    try:
        put(api, "ada/m", path, b"x", parent_commit=parent)
    except HfHubHTTPError as error:
        return error.response.status_code
    return 200


def pages() -> None:
    """Of a Hub whose pages have three entries."""
    api = HfApi()
    for number in range(7):
        api.create_repo(f"ada/m{number}")
    assert [each.id for each in api.list_models()] == [f"ada/m{number}" for number in range(7)]
    assert len(list(api.list_models(limit=5))) == 5
    adds = [CommitOperationAdd(f"a/{number}.txt", b"%d" % number) for number in range(7)]
    api.create_commit("ada/m0", adds, commit_message="seven")
    listed = api.list_repo_tree("ada/m0", "a", expand=True)
    assert [each.path for each in listed] == [f"a/{number}.txt" for number in range(7)]
    assert len(api.list_repo_files("ada/m0")) == 8
    for number in range(4):
        put(api, "ada/m0", "b.txt", b"%d" % number)
    assert len(api.list_repo_commits("ada/m0")) == 6


def parts() -> None:
    """Of a Hub that takes large files in parts of 1000 bytes."""
    api = HfApi()
    api.create_repo("ada/m")
    data = bytes(range(256)) * 20
    put(api, "ada/m", "w.bin", data)
    assert Path(hf_hub_download("ada/m", "w.bin")).read_bytes() == data


def accounts() -> None:
    ada, reader, other, nobody = (HfApi(token=each) for each in (WRITER, READER, OTHER, False))
    ada.create_repo("ada/open")
    ada.create_repo("lab/hidden", private=True)
    put(ada, "lab/hidden", "x.txt", b"x")
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert [each["name"] for each in ada.whoami()["orgs"]] == ["lab"]
    assert reader.model_info("lab/hidden").private
    for stranger in (other, nobody):
        with pytest.raises(RepositoryNotFoundError):
            stranger.model_info("lab/hidden")
        with pytest.raises(RepositoryNotFoundError):
            stranger.hf_hub_download("lab/hidden", "x.txt")
        with pytest.raises(RepositoryNotFoundError):
            put(stranger, "lab/hidden", "x.txt", b"x")
        assert [each.id for each in stranger.list_models()] == ["ada/open"]
        stranger.auth_check("ada/open")
    for stranger in (other, reader):
        with refused(403):
            put(stranger, "ada/open", "x.txt", b"x")
        with refused(403):
            stranger.create_repo("lab/mine")
        with refused(403):
            stranger.create_tag("ada/open", tag="v1")
        with refused(403):
            stranger.delete_repo("ada/open")
        with refused(403):
            stranger.create_collection("mine", namespace="lab")
    with refused(401):
        nobody.create_repo("ada/x")
    with refused(401):
        HfApi(token="hf_wrong").model_info("ada/open")
    assert ada.list_repo_files("ada/open") == [".gitattributes"]


def collections() -> None:
    api = HfApi()
    api.create_repo("ada/m")
    api.create_repo("ada/d", repo_type="dataset", private=True)
    made = api.create_collection("Results, 2026", description="all of them")
    assert made.slug.startswith("ada/results-2026-")
    assert api.create_collection("Results, 2026", exists_ok=True).slug == made.slug
    with refused(409):
        api.create_collection("Results, 2026")
    api.add_collection_item(made.slug, "ada/m", "model", note="first")
    two = api.add_collection_item(made.slug, "ada/d", "dataset")
    assert [(each.item_id, each.item_type, each.note) for each in two.items] == [
        ("ada/m", "model", "first"),
        ("ada/d", "dataset", None),
    ]
    assert len(api.add_collection_item(made.slug, "ada/m", "model", exists_ok=True).items) == 2
    with refused(409):
        api.add_collection_item(made.slug, "ada/m", "model")
    with refused(404):
        api.add_collection_item(made.slug, "ada/no-such", "model")
    first, second = two.items
    api.update_collection_item(made.slug, second.item_object_id, note="second", position=0)
    seen = api.get_collection(made.slug)
    assert [(each.item_id, each.note) for each in seen.items] == [("ada/d", "second"), ("ada/m", "first")]
    assert [each.item_id for each in HfApi(token=False).get_collection(made.slug).items] == ["ada/m"]
    api.delete_collection_item(made.slug, first.item_object_id)
    api.delete_collection_item(made.slug, first.item_object_id, missing_ok=True)
    renamed = api.update_collection_metadata(made.slug, title="Renamed", private=True)
    assert (renamed.title, renamed.private, len(renamed.items)) == ("Renamed", True, 1)
    assert renamed.slug.startswith("ada/renamed-")
    assert api.get_collection(made.slug).title == "Renamed"
    api.move_repo("ada/d", "lab/d", repo_type="dataset")
    assert [each.item_id for each in api.get_collection(made.slug).items] == ["lab/d"]
    assert [each.slug for each in api.list_collections(owner="ada")] == [renamed.slug]
    assert [each.slug for each in api.list_collections(item="datasets/lab/d")] == [renamed.slug]
    assert list(HfApi(token=False).list_collections(owner="ada")) == []
    with refused(404):
        HfApi(token=False).get_collection(renamed.slug)
    api.delete_collection(renamed.slug)
    api.delete_collection(renamed.slug, missing_ok=True)
    with refused(404):
        api.get_collection(renamed.slug)


def parquet() -> None:
    """Reads through hf://, of which the footer and the columns come as ranges."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    api = HfApi()
    api.create_repo("ada/d", repo_type="dataset")
    buffer = io.BytesIO()
    table = pa.table({"a": list(range(1000)), "b": [str(each) for each in range(1000)]})
    pq.write_table(table, buffer, row_group_size=100)
    put(api, "ada/d", "all/train-00000.parquet", buffer.getvalue(), repo_type="dataset")
    files = HfFileSystem()
    assert files.ls("datasets/ada/d/all", detail=False) == ["datasets/ada/d/all/train-00000.parquet"]
    assert files.glob("datasets/ada/d/**/*.parquet") == ["datasets/ada/d/all/train-00000.parquet"]
    with files.open("hf://datasets/ada/d@main/all/train-00000.parquet", block_size=512) as file:
        read = pq.ParquetFile(file)
        assert read.read_row_group(9, columns=["a"])["a"].to_pylist() == list(range(900, 1000))
    with files.open("datasets/ada/d/all/train-00000.parquet") as file:
        file.seek(-4, 2)
        assert file.read() == b"PAR1"


def whoami() -> None:
    print(HfApi().whoami()["name"])


def upload(repo: str, path: str, text: str) -> None:
    """One file, small or large by its name; the id of the commit is printed."""
    print(put(HfApi(), repo, path, text.encode()))


def upload_refused(repo: str, path: str, *statuses: str) -> None:
    """One upload after the other fails: by this status, or, where it is 0, because the connection is lost; each at
    once, whatever Retry-After says."""
    import httpx2

    for status in statuses:
        start = time.monotonic()
        with pytest.raises((HfHubHTTPError, httpx2.TransportError, RuntimeError)) as caught:
            put(HfApi(), repo, path, b"text" * 1000)
        # huggingface_hub hides what befalls a large file behind a RuntimeError
        error = caught.value.__cause__ if caught.type is RuntimeError else caught.value
        found = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        assert found == int(status), error
        assert time.monotonic() - start < 5


def download(repo: str, path: str, size: str) -> None:
    assert Path(hf_hub_download(repo, path)).stat().st_size == int(size)


def commits(repo: str, start: str) -> None:
    """One after the other, until the Hub is gone."""
    api = HfApi()
    for number in range(int(start), 10**6):
        adds = [CommitOperationAdd(f"f{file}.txt", b"%d %d" % (file, number)) for file in range(5)]
        api.create_commit(repo, [*adds, CommitOperationAdd("n.txt", b"%d" % number)], commit_message=str(number))


def main() -> None:
    name, *words = sys.argv[1:]
    assert "HF_ENDPOINT" in os.environ
    if name == "files":
        files(Path(*words))
    else:
        globals()[name](*words)


if __name__ == "__main__":
    main()
