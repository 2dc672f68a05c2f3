"""Models and datasets named on a hub: pinned and fetched by prep, from a real server by the real clients."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cdpo.hub.fetch import converted_splits, model_files
from tests.conftest import run_cdpo, write_project
from tests.hub.hub_content import fill, folder_files, json_lines
from tests.hub.hub_server import OTHER, READER, Hub

TASKS = """\
tag: hub
pipelines: [GEN]
model: [lab/small]
dataset: [rows]
tasks: [{pipeline: BASE}]
GEN: {max_new_tokens: 4, limit: 4}
"""


def rows(count: int, word: str) -> str:
    return json_lines(
        [{"prompt": f"say {word} {at}", "chosen": f"yes {at}", "rejected": f"no {at}"} for at in range(count)]
    )


@dataclass
class Place:
    """A project, and the hub that it knows."""

    hub: Hub
    folder: Path
    cache: Path

    def cdpo(self, *words: object, token: str | None = None, check: int | None = 0, **more: str) -> str:
        """What the command says, of both streams."""
        env = self.hub.environment(self.cache, token) | more
        done = run_cdpo(*words, cwd=self.folder, check=check, env=env)
        return done.stdout + done.stderr

    def lock(self) -> dict:
        return json.loads((self.folder / "configs" / "hub.lock.json").read_text())

    def plan(self) -> dict:
        done = run_cdpo("plan", "--json", cwd=self.folder, env=self.hub.environment(self.cache, None))
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    from cdpo.models import build

    folder = tmp_path_factory.mktemp("tiny")
    build({"kind": "tiny", "seed": 0}, folder)
    return folder_files(folder)


@pytest.fixture
def place(tmp_path: Path, tiny_files: dict[str, bytes]) -> Iterator[Place]:
    with Hub(tmp_path / "hub") as hub:
        fill(hub, "models", "lab/small", tiny_files)
        fill(hub, "datasets", "lab/rows", {"train.jsonl": rows(60, "a"), "test.jsonl": rows(10, "b")})
        folder = write_project(tmp_path / "project", TASKS, datasets="rows: {id: lab/rows, rule: preference}\n")
        yield Place(hub, folder, tmp_path / "cache")


def test_a_model_and_a_dataset_of_the_hub_are_pinned_fetched_and_used(place: Place) -> None:
    assert "is on the Hub and not resolved" in place.cdpo("plan")
    said = place.cdpo("prep")
    assert "looking up model lab/small@main" in said
    pins = place.lock()
    assert set(pins) == {"format", "model lab/small@main", "dataset lab/rows@main"}
    assert pins["dataset lab/rows@main"]["splits"] == {"train": ["train.jsonl"], "test": ["test.jsonl"]}
    keys = [step["key"] for step in place.plan()["steps"]]
    # what is cached needs no network, and what is pinned does not move
    fill(place.hub, "datasets", "lab/rows", {"train.jsonl": rows(5, "other")})
    before = len(place.hub.requests)
    place.cdpo("prep", HF_HUB_OFFLINE="1")
    said = place.cdpo("execute", HF_HUB_OFFLINE="1")
    assert "all steps are finished" in said
    assert len(place.hub.requests) == before
    assert [step["key"] for step in place.plan()["steps"]] == keys
    assert {step["state"] for step in place.plan()["steps"]} == {"cached"}


@pytest.mark.slow
def test_the_lock_gives_the_same_keys_on_another_machine(place: Place, tmp_path: Path) -> None:
    place.cdpo("prep")
    keys = {step["key"] for step in place.plan()["steps"]}
    fill(place.hub, "datasets", "lab/rows", {"train.jsonl": rows(5, "other")})
    other = Place(place.hub, tmp_path / "other", tmp_path / "another cache")
    write_project(other.folder, TASKS, datasets="rows: {id: lab/rows, rule: preference}\n")
    (other.folder / "configs" / "hub.lock.json").write_text((place.folder / "configs" / "hub.lock.json").read_text())
    assert {step["key"] for step in other.plan()["steps"]} == keys
    assert "not on this machine; run `cdpo prep`" not in other.cdpo("prep")
    assert {step["key"] for step in other.plan()["steps"]} == keys


def test_what_is_not_in_the_cache_is_named_when_offline(place: Place) -> None:
    said = place.cdpo("prep", check=2, HF_HUB_OFFLINE="1")
    for name in ("model lab/small@main", "dataset lab/rows@main"):
        assert f"{name}: not in the cache, and HF_HUB_OFFLINE is set" in said
    assert not (place.folder / "configs" / "hub.lock.json").exists()


@pytest.mark.slow
def test_a_revision_and_a_split_are_chosen(place: Place) -> None:
    commit = fill(place.hub, "datasets", "lab/rows", {"train.jsonl": rows(40, "old")}, branch="v1")
    table = "rows: {id: lab/rows@v1, rule: preference, split: train, eval_split: test}\n"
    write_project(place.folder, TASKS, datasets=table)
    place.cdpo("prep")
    assert place.lock()["dataset lab/rows@v1"]["commit"] == commit
    (prepared,) = (place.folder / ".cdpo" / "steps" / "PREP").iterdir()
    report = json.loads((prepared / "out" / "report.json").read_text())
    assert report["read"] == {"source": 40, "source_eval": 10}
    write_project(place.folder, TASKS, datasets=table.replace("eval_split: test", "eval_split: tset"))
    assert "has no split 'tset'; there are: train, test" in place.cdpo("plan", check=2)


def test_all_that_cannot_be_had_is_said_at_once(place: Place, tiny_files: dict[str, bytes]) -> None:
    pickled = {name: data for name, data in tiny_files.items() if not name.endswith(".safetensors")}
    fill(place.hub, "models", "lab/pickled", {**pickled, "pytorch_model.bin": b"\x80"})
    fill(place.hub, "models", "lab/secret", tiny_files, visibility="private")
    models = "[lab/none, lab/small@v9, lab/pickled, lab/secret]"
    write_project(
        place.folder,
        TASKS.replace("[lab/small]", models),
        datasets="rows: {id: lab/rows, config: b, rule: preference}\n",
    )
    said = place.cdpo("prep", token=OTHER, check=2)
    for wanted in (
        "model lab/none@main: there is none at 127.0.0.1",
        "model lab/small@v9: it has no revision 'v9'",
        "model lab/pickled@main: its weights are pickles (pytorch_model.bin)",
        "model lab/secret@main: there is none at 127.0.0.1",
        "dataset lab/rows@main b: ",
    ):
        assert wanted in said
    assert OTHER not in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_private_model_is_read_with_its_owners_token(place: Place, tiny_files: dict[str, bytes]) -> None:
    fill(place.hub, "models", "lab/secret", tiny_files, visibility="private")
    write_project(
        place.folder, TASKS.replace("lab/small", "lab/secret"), datasets="rows: {id: lab/rows, rule: preference}\n"
    )
    place.cdpo("prep", token=READER)
    everything = b"".join(path.read_bytes() for path in place.folder.rglob("*") if path.is_file())
    assert READER.encode() not in everything


@pytest.mark.slow
def test_a_download_that_was_cut_is_gone_on_with(place: Place) -> None:
    fault = place.hub.faults.add("cut-answer", "GET", r"resolve/[0-9a-f]+/model.safetensors", times=20)
    said = place.cdpo("prep", check=2)
    assert fault.done
    assert "model lab/small@main" in said
    fault.times = 0
    place.cdpo("prep")


@pytest.mark.slow
def test_a_dataset_made_by_a_program_is_read_from_its_parquet_conversion(place: Place, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: [f"{name} {at}" for at in range(40)] for name in ("prompt", "chosen", "rejected")})
    pq.write_table(table, tmp_path / "rows.parquet")
    data = (tmp_path / "rows.parquet").read_bytes()
    fill(place.hub, "datasets", "lab/made", {"made.py": "raise SystemExit('never run')"})
    converted = {"pairs/train/0000.parquet": data, "other/train/0000.parquet": data}
    fill(place.hub, "datasets", "lab/made", converted, branch="refs/convert/parquet")
    write_project(place.folder, TASKS, datasets="rows: {id: lab/made, config: pairs, rule: preference}\n")
    place.cdpo("prep")
    assert place.lock()["dataset lab/made@main pairs"]["splits"] == {"train": ["pairs/train/0000.parquet"]}


@pytest.mark.slow
def test_code_of_a_model_is_fetched_where_its_entry_trusts_it_and_of_the_commit_that_is_pinned(
    place: Place, tiny_files: dict[str, bytes]
) -> None:
    files = {**tiny_files, "configuration_own.py": b"raise SystemExit('it is run')\n"}
    settings = json.loads(files["config.json"])
    files["config.json"] = json.dumps({**settings, "auto_map": {"AutoConfig": "configuration_own.C"}}).encode()
    fill(place.hub, "models", "lab/small", files)
    place.cdpo("prep")
    before = place.lock()["model lab/small@main"]
    assert "configuration_own.py" not in before["files"]
    fill(place.hub, "models", "lab/small", {**files, "configuration_own.py": b"raise SystemExit('it is newer')\n"})
    table = "lab/small: {id: lab/small, trust_remote_code: true}\n"
    write_project(place.folder, TASKS, models=table)
    said = place.cdpo("prep", check=None)
    after = place.lock()["model lab/small@main"]
    assert after["commit"] == before["commit"]
    assert after["code"] is True
    assert after["files"].keys() - before["files"].keys() == {"configuration_own.py"}
    assert "it is run" in said


def test_code_in_another_repository_is_refused(place: Place, tiny_files: dict[str, bytes]) -> None:
    settings = {**json.loads(tiny_files["config.json"]), "auto_map": {"AutoConfig": "lab/code--configuration_own.C"}}
    fill(place.hub, "models", "lab/small", {**tiny_files, "config.json": json.dumps(settings).encode()})
    write_project(place.folder, TASKS, models="lab/small: {id: lab/small, trust_remote_code: true}\n")
    said = place.cdpo("prep", check=2)
    assert "lab/small names code in another repository (lab/code), which its commit does not pin" in said


def test_which_files_of_a_model_are_fetched() -> None:
    listed = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    rest = ["README.md", "pytorch_model.bin", "original/model.safetensors", "consolidated.safetensors", "run.py"]
    assert model_files([*listed, *rest]) == sorted(listed)
    assert model_files([*listed, *rest, "in/run.py"], code=True) == sorted([*listed, "run.py"])
    with pytest.raises(ValueError, match="no safetensors"):
        model_files(["config.json"])


def test_which_config_of_a_conversion_is_read() -> None:
    paths = ["a/train/0000.parquet", "a/train/0001.parquet", "a/partial-test/0000.parquet", "README.md"]
    assert converted_splits(paths, None) == {"train": paths[:2]}
    assert converted_splits(paths, "a") == {"train": paths[:2]}
    with pytest.raises(ValueError, match="no config 'b'; there are: a"):
        converted_splits(paths, "b")
    with pytest.raises(ValueError, match="several configs, and none is named; there are: a, c"):
        converted_splits([*paths, "c/train/0000.parquet"], None)
