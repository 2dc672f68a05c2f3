"""What was published is shown as it is shown at home: the same numbers, curves and responses, without weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cdpo.report.collect import collect, compare
from cdpo.store import Store
from tests.conftest import ROOT
from tests.hub.hub_server import OTHER, READER, WRITER, Hub

SFT, DPO = "first/SFT_tiny_playground_s0", "first/DPO_tiny_playground_beta0.1_learning_rate0.0006_s0"

RUN = {"tag": "t", "name": "n", "steps": [], "seed": 0, "method": "SFT", "model": None, "dataset": None, "params": {}}


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path / "hub") as server:
        yield server


def call(hub: Hub, tmp_path: Path, *words: object, token: str = WRITER) -> str:
    env = hub.environment(tmp_path / "cache", token) | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tests.hub.showing", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def mirrored(hub: Hub, tmp_path: Path, namespace: str = "ada", **more: str) -> dict:
    return json.loads(call(hub, tmp_path, "mirror", namespace, **more).splitlines()[-1])


def published(hub: Hub, tmp_path: Path, playground: Path, *runs: str) -> None:
    call(hub, tmp_path, "publish", playground / ".cdpo", tmp_path / "locks", *runs)


def without_place(run: dict) -> dict:
    return {name: value for name, value in run.items() if name != "steps"}


def test_what_was_published_is_shown_as_at_home(hub, tmp_path, playground):
    published(hub, tmp_path, playground, SFT, DPO)
    root = Path(mirrored(hub, tmp_path)["root"])
    here, there = collect(playground / ".cdpo", "first"), collect(root)
    assert sorted(run["name"] for run in there["runs"]) == sorted(name.partition("/")[2] for name in (SFT, DPO))
    at_home = {run["name"]: run for run in here["runs"]}
    for run in there["runs"]:
        assert run["state"] == "done"
        assert without_place(run) == without_place(at_home[run["name"]])
    names = (DPO, SFT)
    assert compare(root, *names) == compare(playground / ".cdpo", *names)
    trained = Store(root).finished()
    assert any((folder / "metrics.jsonl").stat().st_size for folder in trained.values() if folder.parent.name == "DPO")
    # nothing of the machine, and no weights
    texts = [path.read_text() for path in root.rglob("*.json*")]
    assert not any("/home/ada" in text or "workstation" in text for text in texts)
    assert not list(root.rglob("*.safetensors"))


def test_only_what_changed_is_downloaded_and_what_is_gone_is_gone(hub, tmp_path, playground):
    published(hub, tmp_path, playground, SFT)
    first = mirrored(hub, tmp_path)
    assert len(first["said"]) == 1
    assert mirrored(hub, tmp_path)["said"] == []
    published(hub, tmp_path, playground, DPO)
    again = mirrored(hub, tmp_path)
    assert [said.rpartition("/")[2] for said in again["said"]] == [DPO.partition("/")[2]]
    assert len(Store(Path(first["root"])).read_refs()) == 2
    from tests.hub.hub_messages import Account

    repo = hub.routes.repos.find("datasets", "ada", DPO.partition("/")[2], Account("ada"))
    hub.routes.store.remove(repo.file)
    mirrored(hub, tmp_path)
    assert [ref["name"] for ref in Store(Path(first["root"])).read_refs()] == [SFT.partition("/")[2]]


def test_trouble_is_told_in_words(hub, tmp_path, playground):
    published(hub, tmp_path, playground, SFT)
    assert "nothing of cdpo's under nobody" in mirrored(hub, tmp_path, "nobody")["error"]
    assert "no name" in mirrored(hub, tmp_path, "../ada")["error"]
    # published privately
    assert "that this token may see" in mirrored(hub, tmp_path, "ada", token=OTHER)["error"]
    assert "root" in mirrored(hub, tmp_path, "ada", token=READER)


@pytest.mark.parametrize(
    "broken",
    [
        {"pipeline": "../../evil", "key": "0" * 64},
        {"pipeline": "SFT", "key": "../../evil"},
        {"pipeline": "SFT", "key": "f" * 64, "name": "../../../evil"},
        {"pipeline": 5, "key": None},
        [],
    ],
)
def test_what_somebody_published_writes_nowhere_else(broken, tmp_path):
    from cdpo.errors import CdpoError
    from cdpo.hub.mirror import _take

    place = tmp_path / "published" / "tag" / "viewer"
    step = place / "steps" / "SFT" / "x-000000000000"
    (step / "out").mkdir(parents=True)
    (place / "run.json").write_text(json.dumps({**RUN, "tag": "../t", "name": "../../n"}))
    about = {"name": "x", "inputs": {}, "params": {}, "outputs": {}, "seconds": 1.0}
    (step / "manifest.json").write_text(json.dumps({**about, **broken} if isinstance(broken, dict) else broken))
    store = Store(tmp_path / "mirror" / "store")
    if isinstance(broken, dict) and broken.get("name"):
        _take(store, place.parent, {"runs": [], "steps": []})
    else:
        with pytest.raises(CdpoError, match="not as cdpo publishes it"):
            _take(store, place.parent, {"runs": [], "steps": []})
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(store.root) and path.is_file()]
    assert all(path.is_relative_to(tmp_path / "published") for path in outside)
    assert not (tmp_path / "mirror" / "evil").exists()
    assert set(os.listdir(tmp_path)) <= {"mirror", "published"}
