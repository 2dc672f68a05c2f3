"""A keeper and its clients by themselves: ports that others take, keepers that keep dying, servers of other people."""

import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from engine_bench import wait_for
from serving import ANSWERING, Serving, child_of, kill, lives

from cdpo.commands import inspect
from cdpo.engine.services import client
from cdpo.engine.services.client import Service
from cdpo.errors import StepError
from cdpo.step import Device, Step
from cdpo.store.services import Room

#: keeps the service of a folder with servers that are offered a port of another program first
UNLUCKY = """
import sys
from pathlib import Path
from cdpo.engine import trees
from cdpo.engine.services import keeper, server
ports = [int(sys.argv[2])]
free = server.free_port
server.free_port = lambda: ports.pop() if ports else free()
keeper.LINGER = 60
room = keeper.Room(Path(sys.argv[1]))
lock = room.lock()
keeper.Keeper(room, sys.argv[3]).run()
"""


@pytest.fixture
def serving(tmp_path):
    bench = Serving(tmp_path)
    (bench.folder / "diary.txt").touch()
    yield bench
    bench.close()


@pytest.fixture
def step(serving, monkeypatch):
    """Makes a step, run by hand in this process, whose server is started with these options."""
    monkeypatch.setenv("PYTHONPATH", serving.paths)

    def make(*options, name="a", **more):
        keep = {
            "server": [sys.executable, ANSWERING, "--port", "{port}", "--model", "{model}", *options],
            "python": sys.executable,
            "options": [],
            "processes": 1,
            "api_key": None,
            "gpus": [],
            "job": None,
            "model": serving.model()["folder"],
            "build": None,
            "adapter": None,
            "label": "model",
            "folder": str(serving.folder),
            "host": socket.gethostname(),
            "ready_seconds": 30.0,
            "restarts": 3,
            **more,
        }
        service = {"folder": str(serving.store.root / "services" / name), "keep": keep, "api_key": None}
        return made(serving, service)

    return make


def made(serving, service):
    work = serving.folder / "store" / "work" / "hand"
    work.mkdir(parents=True, exist_ok=True)
    return Step("ASK", "hand", "a", {}, {}, 0, Device(service=service), work)


def said(step):
    path = step.work / "events.jsonl"
    return path.read_text() if path.exists() else ""


def test_a_port_that_another_program_takes_costs_a_start_and_no_wrong_answers(serving, step):
    """The other program answers all that is asked, of another model."""
    with serving.standing("--name", "served") as (stranger, url):
        # slow, so that the stranger is asked first
        given = step("--slow", "1").device.service
        room = Room(given["folder"])
        room.folder.mkdir(parents=True)
        (room.folder / "service.json").write_text(json.dumps(given["keep"]))
        port = url.split(":")[2].removesuffix("/v1")
        mark = f"test-{os.getpid()}/unlucky"
        keeper = subprocess.Popen([sys.executable, "-c", UNLUCKY, str(room.folder), port, mark])
        try:
            assert wait_for(lambda: (room.state() or {}).get("state") == "ready")
            assert room.state()["server"] != stranger.pid
            assert f":{port}/" not in room.state()["url"]
            assert room.state()["restarts"] == 0
            assert (room.folder / "server-2.log").exists()
        finally:
            keeper.terminate()
            keeper.wait(20)


def test_a_command_that_cannot_be_started_is_told(serving, step):
    script = serving.folder / "serve"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    service = Service(step(server=[str(script), "{port}", "{model}"]))
    with pytest.raises(StepError, match=r"its server cannot be started: .*serve'; see `services:` in devices.yaml"):
        service.address()


def test_the_next_step_tries_anew_what_failed(serving, step):
    flag = serving.folder / "flag"
    code = f"import os, sys; os.path.exists({str(flag)!r}) or sys.exit('not yet')"
    server = [sys.executable, "-c", f"{code}; sys.argv[0] = ''; exec(open({ANSWERING!r}).read())"]
    broken = step(server=[*server, "--port", "{port}", "--model", "{model}"])
    with pytest.raises(StepError, match="not yet"):
        Service(broken).address()
    flag.touch()
    assert Service(broken).address().url.startswith("http://127.0.0.1:")


def test_what_an_earlier_keeper_said_is_not_believed(serving, step, monkeypatch):
    """The next one has its lock before it says anything."""
    mute = serving.folder / "mute"
    mute.write_text("#!/bin/sh\nsleep 60 1>&- &\necho $!\n")
    mute.chmod(0o755)
    given = step().device.service
    room = Room(given["folder"])
    room.folder.mkdir(parents=True)
    (room.folder / "state.json").write_text('{"state": "failed", "reason": "yesterday"}')
    monkeypatch.setattr(sys, "executable", str(mute))
    client.keep(room, given["keep"])
    assert room.is_kept()
    assert room.state() is None


@pytest.mark.slow
def test_keepers_that_die_are_replaced_so_many_times(serving, step):
    asked = step("--child")
    service = Service(asked)
    room = Room(asked.device.service["folder"])
    children = []
    for _ in range(client.MOST_KEEPERS + 1):
        service.address()
        children.append(child_of(room.folder / "server-1.log"))
        kill(room.state()["keeper"]["pid"])
        assert wait_for(lambda: not room.is_kept())
    with pytest.raises(StepError, match=r"the keeper of its server ended 4 times; see .*keeper.log"):
        service.address()
    assert not any(lives(child) for child in children[:-1])


def test_an_address_is_given_only_where_a_server_answers(serving, step):
    """The keeper has not seen yet that the server is dead."""
    asked = step()
    service = Service(asked)
    first = service.address()
    room = Room(asked.device.service["folder"])
    kill(room.state()["server"])
    second = service.address()
    assert first.url != second.url
    assert "its server is restarted (1 of 3)" in said(asked)


def test_the_step_shows_signs_of_life_while_it_waits(serving, step, monkeypatch):
    monkeypatch.setattr("cdpo.step.ALIVE_SECONDS", 0.2)
    asked = step("--slow", "1")
    Service(asked).address()
    assert said(asked).count('"alive"') >= 2


THEIRS = {
    ("--name", "x", "--name", "y"): (None, "lists x, y: `model:` says which one is meant"),
    ("--name", "x"): ("z", "lists x, and not z"),
    ("--key", "PATH"): (None, "refuses requests without a key"),
}


@pytest.mark.parametrize("options", THEIRS)
def test_a_server_of_other_people_that_will_not_do_is_told(serving, options):
    model, text = THEIRS[options]
    with serving.standing(*options) as (_, url):
        asked = made(serving, {"url": url, "model": model, "api_key": None})
        with pytest.raises(StepError, match=text):
            Service(asked).address()


def test_a_server_of_other_people_that_is_not_there_is_waited_for_a_while(serving, monkeypatch):
    monkeypatch.setattr(client, "PATIENCE", 1.0)
    asked = made(serving, {"url": "http://127.0.0.1:9/v1", "model": None, "api_key": None})
    began = time.monotonic()
    with pytest.raises(StepError, match=r"no server answers at http://127.0.0.1:9/v1 .*start it, or correct `url:`"):
        Service(asked).address()
    assert time.monotonic() - began > 1


def test_a_proxy_of_the_network_is_not_asked_about_this_machine(serving, step, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert Service(step()).address().model.endswith("/model")


def test_status_shows_services_and_whom_they_serve(serving, capsys):
    plan = serving.served_plan("a", rows=60, pause=0.1)
    (key,) = plan.steps
    process = serving.ask()
    pid = serving.service()["pid"]
    project = SimpleNamespace(frozen=lambda: plan, store=serving.store)
    inspect.status(project, as_json=False)
    text = capsys.readouterr().out
    assert "service  model: python answers at http://127.0.0.1:" in text
    assert f"process {pid}; for ASK/a-{key[:12]}\n" in text
    inspect.status(project, as_json=True)
    (found,) = json.loads(capsys.readouterr().out)["services"]
    assert (found["state"], found["pid"], found["users"]) == ("ready", pid, [f"ASK/a-{key[:12]}"])
    process.terminate()
    assert serving.finish(process)[0] == 130
