"""`report_to`: wandb, trackio and TensorBoard are told of a training, and the training does not notice.

Packages and processes are the real ones; wandb's server is one on this machine (wandb_server.py).
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from resuming import KILLED, STOPPED, Case, Interrupt, equal
from transformers import TrainerCallback
from wandb_server import KEY, WandbServer, wandb_server

from cdpo.config.trackers import obstacles
from cdpo.errors import StepError
from cdpo.files import read_json_lines
from cdpo.store import Store

ALL = ["wandb", "trackio", "tensorboard"]
PARAMS = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 6, "eval_steps": 3, "limit": 16}
TAG = "my tag"
#: recognisable, in variables that a user may have set
SECRETS = {
    "HF_TOKEN": "hf_recognisableHubToken",
    "OPENAI_API_KEY": "sk-recognisableOpenAI",
    "AWS_SECRET_ACCESS_KEY": "recognisableAwsKey",
    "DATABASE_PASSWORD": "recognisablePassword",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """wandb's server, and an environment that knows it."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with wandb_server() as made:
        monkeypatch.setenv("WANDB_BASE_URL", made.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield made


@pytest.fixture(scope="module")
def whole(world: Any) -> Case:
    """The step, told nobody and interrupted by nobody."""
    case = Case(world, world.folder / "untracked", "SFT", PARAMS, device={"checkpoint_seconds": 1e9})
    assert case.attempt() == 0, case.said()
    return case


@pytest.fixture
def case(world: Any, tmp_path: Path) -> Any:
    """The same step with trackers, as a step of a run of TAG."""

    def make(*names: str, **device: Any) -> Case:
        made = Case(world, tmp_path / "store", "SFT", PARAMS, device={"report_to": list(names), **device})
        Store(tmp_path / "store").write_ref(TAG, "run", {"tag": TAG, "name": "run", "steps": [made.key]})
        return made

    return make


class Breaks(TrainerCallback):
    """Fails in the middle of an optimiser step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == 4:
            raise StepError("broken")


def wait_until_gone(work: Path) -> None:
    """Until no process is left that tells trackers of the step of `work`, whose training was killed."""
    limit = time.monotonic() + 30
    while any(str(work).encode() in line for line in command_lines()):
        assert time.monotonic() < limit
        time.sleep(0.05)


def command_lines() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"cdpo.train.trackers" in line:
            yield line


def points(path: Path) -> dict[int, dict[str, float]]:
    """metrics.jsonl by optimiser step."""
    found: dict[int, dict[str, float]] = {}
    for line in read_json_lines(path / "metrics.jsonl"):
        found.setdefault(line.pop("step"), {}).update(line)
    return found


def of_wandb(server: WandbServer, key: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in server.history(key[:32]):
        assert line["_step"] not in found
        found[line["_step"]] = {name: value for name, value in line.items() if not name.startswith("_")}
    return found


def of_tensorboard(folder: Path) -> tuple[dict[int, dict[str, float]], str]:
    """The points that TensorBoard shows, and the state."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    found: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for each in events.Scalars(name):
            assert name not in found.setdefault(each.step, {})
            found[each.step][name] = each.value
    state = events.Tensors("cdpo/state")[-1].tensor_proto.string_val[0].decode().strip()
    return dict(sorted(found.items())), state


TRACKIO = """
import json, sys
from trackio.api import Api
from trackio.sqlite_storage import SQLiteStorage
(run,) = Api().runs("cdpo")
logs = SQLiteStorage.get_logs("cdpo", run.name, run_id=run.id)
print(json.dumps([run.id, run.name, run.config, logs, [each["title"] for each in run.alerts()]], default=str))
"""


def of_trackio(folder: Path) -> tuple[str, str, dict[str, Any], dict[int, dict[str, float]], list[str]]:
    """The only run's id, name and config, its points and its alerts, read by a process of its own."""
    environment = {**os.environ, "TRACKIO_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", TRACKIO], env=environment, capture_output=True, text=True, check=True)
    key, name, config, logs, alerts = json.loads(done.stdout)
    found: dict[int, dict[str, float]] = {}
    for line in logs:
        assert line["step"] not in found
        found[line["step"]] = {each: value for each, value in line.items() if each not in ("step", "timestamp")}
    return key, name, config, dict(sorted(found.items())), alerts


def sync(folder: Path) -> None:
    """`wandb sync` of a run's folder; it leaves logs where it is called."""
    command = [str(Path(sys.executable).parent / "wandb"), "sync", str(folder)]
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    subprocess.run(command, cwd=folder.parent, env=environment, check=True, capture_output=True)


def close(one: dict[int, dict[str, float]], other: dict[int, dict[str, float]]) -> bool:
    """Equal but for the digits that single precision leaves out."""
    return one.keys() == other.keys() and all(one[at] == pytest.approx(other[at], rel=1e-6) for at in one)


def no_secret(server: WandbServer, *folders: Path) -> None:
    secrets = [KEY, *SECRETS.values()]
    for request in server.requests:
        assert not [each for each in secrets if each in request]
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        held = path.read_bytes()
        assert not [each for each in secrets if each.encode() in held], path


def test_all_are_told_of_a_training_that_was_killed(server: WandbServer, whole: Case, case: Any) -> None:
    made = case(*ALL)
    assert made.attempt(Interrupt(4, signal.SIGKILL)) == KILLED, made.said()
    wait_until_gone(made.work)
    assert server.runs[made.key[:32]]["exit"] == 1
    assert made.attempt() == 0, made.said()
    equal(whole.made(), made.made())
    assert made.made().summary["resumed_from"] == [3]
    assert not [note for note in made.notes() if "report_to" in note], made.notes()
    told, root = points(made.made().path), made.store.root
    assert list(told) == list(range(1, 7))
    assert any("eval_loss" in values for values in told.values())

    assert of_wandb(server, made.key) == told
    (run,) = server.runs.values()
    assert (run["name"], run["displayName"], run["groupName"], run["exit"]) == (made.key[:32], "SFT/made", TAG, 0)
    assert run["project"] == "cdpo"
    config = {"pipeline": "SFT", "key": made.key, "seed": 0, **PARAMS}
    assert server.config(made.key[:32]) == config
    assert f"api:{KEY}" in server.authorised

    label = f"SFT-made-{made.key[:12]}"
    shown, state = of_tensorboard(root / "tensorboard" / TAG / label)
    assert close(shown, told)
    assert state == "finished"

    key, name, given, logged, alerts = of_trackio(root / "trackio")
    assert (key, name) == (made.key[:32], f"SFT/made-{made.key[:12]}")
    assert logged == told
    assert {each: given[each] for each in config} == config
    assert (given["_Group"], given["_Username"]) == (TAG, None)
    assert alerts == ["SFT/made: finished"]

    no_secret(server, root / "wandb", root / "tensorboard", root / "trackio", made.made().path)
    # nor where it ran, and what was typed
    said = "".join(server.requests)
    for each in (str(root), os.getcwd(), "cdpo.train.trackers", os.environ["PATH"]):
        assert each not in said


def test_a_failed_step_is_shown_as_failed(server: WandbServer, case: Any) -> None:
    made = case(*ALL)
    assert made.attempt(Breaks()) == 1
    assert server.runs[made.key[:32]]["exit"] == 1
    told = points(made.work)
    assert list(told) == [1, 2, 3]
    assert of_wandb(server, made.key) == told
    shown, state = of_tensorboard(made.store.root / "tensorboard" / TAG / f"SFT-made-{made.key[:12]}")
    assert close(shown, told)
    assert state == "failed"
    *_, logged, alerts = of_trackio(made.store.root / "trackio")
    assert logged == told
    assert alerts == ["SFT/made: failed"]


@pytest.mark.slow
def test_wandb_offline_is_one_folder_that_sync_sends(
    server: WandbServer, case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    made = case("wandb")
    assert made.attempt(Interrupt(4, signal.SIGTERM)) == STOPPED, made.said()
    assert len(list((made.store.root / "wandb").glob("offline-run-*"))) == 1
    assert made.attempt() == 0, made.said()
    assert server.requests == []
    (folder,) = (made.store.root / "wandb").glob("offline-run-*")
    no_secret(server, made.store.root / "wandb")

    sync(folder)
    told = points(made.made().path)
    assert list(told) == list(range(1, 7))
    assert of_wandb(server, made.key) == told
    run = server.runs[made.key[:32]]
    assert (run["displayName"], run["groupName"], run["project"], run["exit"]) == ("SFT/made", TAG, "mine", 0)
    no_secret(server)


@pytest.mark.parametrize(
    ("what", "path"),
    [
        pytest.param("broken", "", marks=pytest.mark.slow),
        pytest.param("silent", "", marks=pytest.mark.slow),
        ("silent", "file_stream"),
    ],
)
def test_a_server_that_fails_does_not_fail_the_training(
    server: WandbServer, whole: Case, case: Any, monkeypatch: pytest.MonkeyPatch, what: str, path: str
) -> None:
    """Neither from the start nor in the middle; it is told once, with what to do."""
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    setattr(server, what, path)
    made = case("wandb")
    began = time.monotonic()
    assert made.attempt() == 0, made.said()
    assert time.monotonic() - began < 30
    equal(whole.made(), made.made())
    (note,) = [note for note in made.notes() if "report_to" in note]
    assert "wandb cannot be reached (" in note
    # what could not be sent is there, and its place is named
    setattr(server, what, None)
    (folder,) = (made.store.root / "wandb").glob("*run-*")
    assert str(folder) in note
    sync(folder)
    assert of_wandb(server, made.key) == points(made.made().path)


@pytest.mark.slow
def test_a_tracker_without_room_does_not_fail_the_training(server: WandbServer, whole: Case, case: Any) -> None:
    made = case("tensorboard", "trackio")
    made.store.root.mkdir(exist_ok=True)
    for name in ("tensorboard", "trackio"):
        (made.store.root / name).write_text("a file, where a folder is to be")
    assert made.attempt() == 0, made.said()
    equal(whole.made(), made.made())
    notes = sorted(note for note in made.notes() if "report_to" in note)
    assert [note.partition(":")[2].split()[0] for note in notes] == ["tensorboard", "trackio"]


def test_what_is_not_installed_is_named_with_what_to_do() -> None:
    assert obstacles(["no_such_tracker"]) == [
        "report_to: no_such_tracker is not installed: pip install 'cdpo[no_such_tracker]'"
    ]
    assert obstacles(["trackio", "tensorboard"]) == []


def test_wandb_without_an_account_is_found_out_before(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacles(["wandb"]) == []
    monkeypatch.delenv("WANDB_API_KEY")
    (told,) = obstacles(["wandb"])
    assert "`wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline" in told
    home = Path(os.environ["HOME"])
    home.mkdir(exist_ok=True)
    (home / ".netrc").write_text(f"machine {server.url.removeprefix('http://')}\n login user\n password {KEY}\n")
    (home / ".netrc").chmod(0o600)
    assert obstacles(["wandb"]) == []
    (home / ".netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert obstacles(["wandb"]) == []
    assert server.requests == []
