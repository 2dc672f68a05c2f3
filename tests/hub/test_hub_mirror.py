"""A namespace is shown whatever stands in it: broken, hostile, made again, twice, or gone; and nothing of a machine."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from cdpo.errors import CdpoError
from cdpo.hub import mirror as module
from cdpo.hub.lineage import Lineage
from cdpo.hub.shown import viewer_files
from cdpo.report.collect import collect
from cdpo.store import Store
from tests.results.made import PROMPTS, finish, key, record, scored_again

SCORES = {"split": "eval", "prompt_id": PROMPTS, "reward_generated": [0.5] * len(PROMPTS)}


class Repos:
    """Hub enough for a mirror: repositories are folders, a commit is a number."""

    endpoint = "https://hub.test"

    def __init__(self, root: Path):
        self.root = root
        self.commits: dict[str, str] = {}
        self.errors: dict[str, Exception] = {}

    def list_datasets(self, **_):
        return [type("Info", (), {"id": name, "sha": commit}) for name, commit in self.commits.items()]

    def list_models(self, **_):
        return []

    def snapshot_download(self, repo, **_):
        if repo in self.errors:
            raise self.errors[repo]
        return str(self.root / repo)

    def publish(self, repo, store, *names):
        """The runs of a store as they are now; returns the folder of the last."""
        for ref in store.read_refs():
            if ref["name"] in names:
                folder = self.root / repo / ref["tag"]
                shutil.rmtree(folder, ignore_errors=True)
                for path, content in viewer_files(store, Lineage.of_run(store, ref)).items():
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    (folder / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        self.touch(repo)
        return folder

    def touch(self, repo):
        self.commits[repo] = str(int(self.commits.get(repo, "0")) + 1)


@pytest.fixture
def repos(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Repos(tmp_path / "repos")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: found)
    return found


@pytest.fixture
def home(tmp_path):
    """A store with two runs of one SFT step each and their scores."""
    store = Store(tmp_path / "home" / ".cdpo")
    for name in ("one", "two"):
        about = {"version": 1, "code": "c", "versions": {}, "started": 1.0, "finished": 2.0}
        steps = [key("SFT", name), key("EVALREWARD", name)]
        finish(store, "SFT", name, steps[0])
        finish(store, "EVALREWARD", name, steps[1], inputs={"model": {"step": steps[0]}}, table=SCORES)
        for each in steps:
            path = store.find(each) / "manifest.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **about}))
        record(store, "t", name, "SFT", 0, {"beta": 0.1}, steps)
    return store


def shown(repos):
    """Name -> mean reward, of what the mirror has now."""
    store = module.mirror("ada")
    return {run["name"]: run["metrics"]["reward/mean"]["mean"] for run in collect(store.root)["runs"]}


def damage(folder, name, how):
    (path,) = folder.glob(f"viewer/**/{name}")
    path.write_bytes(how(path.read_bytes()) if callable(how) else how)


def other(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes}).encode()


def without(name):
    return lambda text: json.dumps({each: of for each, of in json.loads(text).items() if each != name}).encode()


BROKEN = [
    ("run.json", b"["),
    ("run.json", b"[]"),
    ("run.json", b"[" * 100_000),
    ("run.json", b"\xff"),
    ("run.json", b" " * (module.MOST + 1)),
    *[("run.json", without(name)) for name in ("seed", "method", "model", "params", "steps", "tag")],
    ("run.json", other(params=[])),
    ("run.json", other(params={"beta": float("nan")})),
    ("run.json", other(steps=[5])),
    ("run.json", other(steps=5)),
    ("run.json", other(labels=[1])),
    ("run.json", other(select=3)),
    ("run.json", other(seed="0")),
    ("run.json", other(name="\ud800")),
    ("SFT/*/manifest.json", b"{}"),
    ("SFT/*/manifest.json", other(seconds="long")),
    ("SFT/*/manifest.json", other(params=None)),
    ("SFT/*/manifest.json", other(summary=[])),
    ("EVALREWARD/*/manifest.json", other(inputs=[])),
    ("EVALREWARD/*/manifest.json", other(outputs={"scores.parquet": 3})),
    ("scores.parquet", b"PAR1 is none"),
    ("scores.parquet", lambda whole: whole[:-9]),
]


@pytest.mark.parametrize(("name", "how"), BROKEN)
def test_what_is_broken_keeps_nobody_from_the_rest(repos, home, name, how):
    repos.publish("ada/one", home, "one")
    damage(repos.publish("ada/two", home, "two"), name, how)
    assert shown(repos) == {"one": 0.5}
    store = module.mirror("ada")
    assert [said.partition("@")[0] for said in module.problems(store)] == ["dataset ada/two"]
    assert "not as cdpo publishes it" in module.problems(store)[0]
    assert len(store.finished()) == 2  # nothing is left of the broken one
    repos.publish("ada/two", home, "two")
    assert shown(repos) == {"one": 0.5, "two": 0.5}
    assert module.problems(store) == []


@pytest.mark.parametrize("field", ["tag", "name"])
def test_long_names_are_names(repos, home, field):
    damage(repos.publish("ada/one", home, "one"), "run.json", other(**{field: "x" * 10_000}))
    damage(repos.root / "ada/one/t", "SFT/*/manifest.json", other(name="y/" * 5000))
    assert list(shown(repos).values()) == [0.5]
    damage(repos.root / "ada/one/t", "run.json", other(**{field: "z"}))
    repos.touch("ada/one")
    assert len(shown(repos)) == 1


def test_a_step_that_was_made_again_is_shown_as_it_is_now(repos, home):
    repos.publish("ada/one", home, "one")
    assert shown(repos) == {"one": 0.5}
    scored_again(home, key("EVALREWARD", "one"), 3.0)
    path = home.find(key("EVALREWARD", "one")) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "finished": 9.0, "version": 1}))
    here = {run["name"]: run["metrics"]["reward/mean"]["mean"] for run in collect(home.root)["runs"]}
    folder = repos.publish("ada/one", home, "one")
    assert shown(repos)["one"] == here["one"] > 2
    # what was made before, published in another repository, does not take its place
    damage(folder, "EVALREWARD/*/manifest.json", other(finished=1.0))
    shutil.copytree(folder, repos.root / "ada/old" / "t")
    repos.touch("ada/old")
    assert module.mirror("ada").manifest(module.mirror("ada").find(key("EVALREWARD", "one")))["finished"] == 9.0


def test_what_is_gone_is_gone_with_its_steps(repos, home):
    repos.publish("ada/one", home, "one")
    repos.publish("ada/two", home, "two")
    shown(repos)
    del repos.commits["ada/two"]
    assert shown(repos) == {"one": 0.5}
    assert len(module.mirror("ada").finished()) == 2
    # what a record that was lost had named
    (module.mirror("ada").root / module.SEEN).write_text("{")
    del repos.commits["ada/one"]
    repos.publish("ada/two", home, "two")
    assert shown(repos) == {"two": 0.5}
    assert len(module.mirror("ada").finished()) == 2


def test_two_repositories_with_one_run(repos, home):
    repos.publish("ada/one", home, "one")
    damage(repos.publish("ada/two", home, "one"), "run.json", other(method="DPO"))
    shown(repos)
    del repos.commits["ada/two"]
    (run,) = collect(module.mirror("ada").root)["runs"]
    assert run["method"] == "SFT"


class Refused(Exception):
    """As the client raises it."""

    def __init__(self, status):
        super().__init__(f"HTTP {status}")
        self.response = type("Response", (), {"status_code": status, "headers": {}})()


def test_one_that_is_gated_is_told_and_tried_again(repos, home):
    repos.publish("ada/one", home, "one")
    repos.publish("ada/two", home, "two")
    repos.errors["ada/one"] = Refused(403)
    assert shown(repos) == {"two": 0.5}
    assert "403" in module.problems(module.mirror("ada"))[0]
    repos.errors.clear()
    assert shown(repos) == {"one": 0.5, "two": 0.5}


@pytest.mark.parametrize("error", [Refused(503), ConnectionError("reset")])
def test_a_hub_that_goes_away_in_the_middle_is_told_and_goes_on(repos, home, error):
    repos.publish("ada/one", home, "one")
    repos.publish("ada/two", home, "two")
    repos.errors["ada/two"] = error
    with pytest.raises(CdpoError, match="ada on the Hub"):
        module.mirror("ada")
    repos.errors.clear()
    said: list[str] = []
    module.mirror("ada", said.append)
    assert said == ["1/1 ada/two"]
    assert shown(repos) == {"one": 0.5, "two": 0.5}


def test_a_full_disk_is_told_and_is_nobodys_fault(repos, home, monkeypatch):
    repos.publish("ada/one", home, "one")
    with monkeypatch.context() as full:
        full.setattr(
            module.shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left", "/there"))
        )
        with pytest.raises(CdpoError, match="No space left"):
            module.mirror("ada")
    assert shown(repos) == {"one": 0.5}


def test_nothing_of_the_machine_is_published(home, tmp_path, monkeypatch):
    """Its name, its folders, its user: whatever a parameter, an input or a summary says."""
    secret = f"{tmp_path}/home/ada/judge.py"
    for folder in home.finished().values():
        path = folder / "manifest.json"
        changes = {
            "params": {"judge": f"{secret}:wordy", "more": [{"place": secret}], "beta": 0.1, "text": "1/2 and/or"},
            "host": {"name": "workstation", "cpus": 2, "user": "ada"},
            "inputs": {"plugin": {"plugin": f"{secret}:wordy", "sha256": "0"}},
            "summary": {"file": secret},
        }
        path.write_text(other(**changes)(path.read_text()).decode())
    record(home, "t", "one", "SFT", 0, {"judge": f"{secret}:wordy", "~": "~/judge.py:wordy"}, [key("SFT", "one")])
    ref = home.read_refs()[0]
    files = viewer_files(home, Lineage.of_run(home, ref))
    assert files
    for content in files.values():
        text = content if isinstance(content, bytes) else content.read_bytes()
        for told in (os.fspath(tmp_path), "/home", "~/", "workstation", str(Path.home())):
            assert told.encode() not in text
    (run,) = [json.loads(content) for path, content in files.items() if path.endswith("run.json")]
    assert run["params"]["judge"] == "./judge.py:wordy"
    (told,) = [json.loads(content) for path, content in files.items() if path.endswith("/manifest.json")]
    assert told["params"]["text"] == "1/2 and/or"
    assert told["params"]["more"] == [{"place": "./judge.py"}]


def test_scores_of_others_have_no_rows_to_be_taken_from(repos, home):
    """A table of other columns is shown as one without numbers."""
    folder = repos.publish("ada/one", home, "one")
    (path,) = folder.glob("viewer/**/scores.parquet")
    pd.DataFrame({"split": ["eval"], "other": ["text"]}).to_parquet(path)
    damage(folder, "EVALREWARD/*/manifest.json", other(outputs={"scores.parquet": {"size": path.stat().st_size}}))
    module.mirror("ada")
    assert collect(module.home("ada"))["runs"] == []
