"""Steps that need a server: it is started, waited for, shared, restarted and ended, whatever is killed."""

import os
import signal
import time

import pytest
from engine_bench import of_kind, wait_for
from serving import ASKING, Serving, child_of, kill, lives

from cdpo.engine.stop import stop
from cdpo.engine.watch import proc
from cdpo.files import read_json
from cdpo.store.removal import plan_gc, remove


@pytest.fixture
def serving(tmp_path):
    bench = Serving(tmp_path / "räume und mehr")
    bench.folder.mkdir()
    yield bench
    bench.close()


#: seconds, and of what a quicker test shows most
SLOW = pytest.mark.slow


def notes(events):
    return " | ".join(event["text"] for event in of_kind(events, "note"))


def test_two_steps_of_one_model_share_a_server_that_ends_after_them(serving):
    plan = serving.served_plan("a", "b", pause=0.05)
    code, events = serving.finish(serving.ask("--slow", "0.5", "--child", "--diary", str(serving.diary)))
    assert code == 0, events
    pids = {row["pid"] for key in plan.steps for row in serving.rows(key)}
    assert len(pids) == 1
    assert serving.started() == 1
    assert serving.rows(next(iter(plan.steps)))[0]["text"] == "ROW 0"
    assert serving.no_service()
    room = serving.room()
    assert not lives(child_of(room.folder / "server-1.log"))
    assert room.state()["state"] == "ended"
    # nothing of the model is left, and the logs are, until gc
    assert not (room.folder / "model").exists()
    (found,) = [each for each in plan_gc(serving.store) if each.kind == "service"]
    assert found.path == room.folder
    assert list(remove(serving.store, [found])) == [found]
    assert not room.folder.exists()


@SLOW
def test_two_executions_share_a_server_and_models_do_not(serving):
    serving.served_plan("a", pause=0.3)
    first = serving.ask("--diary", str(serving.diary))
    assert serving.happened("step_started")
    serving.served_plan("b", "c", model={"b": "model", "c": "another"}, pause=0.05)
    second = serving.ask("--diary", str(serving.diary))
    assert [serving.finish(process)[0] for process in (second, first)] == [0, 0]
    assert serving.started() == 2
    assert {each.state()["label"] for each in serving.rooms()} == {"model", "another"}
    assert serving.no_service()


@pytest.mark.parametrize(
    "how", [pytest.param("killed", marks=SLOW), "in an answer", pytest.param("silent", marks=SLOW)]
)
def test_a_server_that_is_lost_is_started_again_and_the_step_goes_on(serving, how):
    flag = serving.folder / "flag"
    (key,) = serving.served_plan("a", rows=12, pause=0.15).steps
    option = {"killed": [], "in an answer": ["--die", str(flag)], "silent": ["--hang", str(flag)]}[how]
    process = serving.ask("--child", *option)
    server = serving.service()["pid"]
    assert wait_for(lambda: serving.asked(key) > 2)
    flag.touch() if option else kill(server)
    assert wait_for(lambda: serving.service_state() == "restarting", 10)
    code, events = serving.finish(process)
    assert code == 0, events
    rows = serving.rows(key)
    assert [row["text"] for row in rows] == [f"ROW {at}" for at in range(12)]
    assert len({row["pid"] for row in rows}) == 2
    why = {"killed": "ended with signal 9", "in an answer": "ended with exit code 9", "silent": "has not answered"}[how]
    assert "its server is restarted (1 of 3)" in notes(events)
    assert why in notes(events)
    assert not lives(child_of(serving.room().folder / "server-1.log"))
    assert serving.no_service()


def test_restarts_are_bounded_and_the_step_fails_with_the_reason(serving):
    serving.served_plan("a", rows=200, pause=0.1)
    process = serving.ask("--megabytes", "1", service={"restarts": 1})
    for _ in range(2):
        kill(serving.service()["pid"])
        assert wait_for(lambda: not serving.services() or serving.service_state() != "ready")
    code, events = serving.finish(process)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["reason"].startswith("its server was restarted 1 times; now python ended with signal 9")
    assert "server-2.log" in failed["reason"]
    assert serving.no_service()


def test_a_keeper_that_is_killed_takes_its_server_along_and_another_goes_on(serving):
    (key,) = serving.served_plan("a", rows=12, pause=0.15).steps
    process = serving.ask("--child")
    server, keeper = serving.service()["pid"], serving.room().state()["keeper"]["pid"]
    child = child_of(serving.room().folder / "server-1.log")
    assert wait_for(lambda: serving.asked(key) > 2)
    kill(keeper)
    assert wait_for(lambda: not lives(server), 2)
    code, events = serving.finish(process)
    assert code == 0, events
    assert len({row["pid"] for row in serving.rows(key)}) == 2
    assert "the keeper of its server is gone; another one is started" in notes(events)
    assert not lives(child)
    assert serving.no_service()


@SLOW
def test_a_worker_that_is_killed_leaves_the_server_to_the_others(serving):
    one, two = serving.served_plan("a", "b", rows=10, pause=0.15).steps
    process = serving.ask()
    assert wait_for(lambda: serving.asked(one) and serving.asked(two), 20)
    kill(proc(serving.store.work(one))["pid"])
    code, events = serving.finish(process)
    assert code == 1
    assert [event["name"] for event in of_kind(events, "step_failed")] == ["a"]
    assert len({row["pid"] for row in serving.rows(two)}) == 1
    assert serving.no_service()
    # what it had is not asked for again
    answered = {row["pid"] for _, row in serving.journal(one)}
    assert serving.finish(serving.ask())[0] == 0
    assert answered < {row["pid"] for row in serving.rows(one)}


@SLOW
def test_a_supervisor_that_is_killed_ends_neither_step_nor_server(serving):
    (key,) = serving.served_plan("a", rows=50, pause=0.15).steps
    first = serving.ask()
    serving.service()
    kill(first.pid)
    first.wait()
    second = serving.ask()
    code, events = serving.finish(second)
    assert code == 0
    assert of_kind(events, "step_adopted")
    assert len({row["pid"] for row in serving.rows(key)}) == 1
    assert serving.no_service()


def test_what_is_left_of_a_service_when_all_are_killed_at_once_ends_with_the_next_execution(serving):
    (key,) = serving.served_plan("a", rows=30, pause=0.1).steps
    first = serving.ask("--child")
    serving.service()
    child = child_of(serving.room().folder / "server-1.log")
    for pid in (first.pid, serving.room().state()["keeper"]["pid"], proc(serving.store.work(key))["pid"]):
        kill(pid)
    first.wait()
    assert lives(child)
    # another model's step runs on this store
    serving.served_plan("b", model="another")
    code, events = serving.finish(serving.ask())
    assert code == 0
    assert not lives(child)
    assert "killed what an ended worker of this store left running" in notes(events)
    assert serving.no_service()


def test_what_a_keeper_left_that_was_killed_when_all_was_done_is_ended_by_the_next_execution(serving):
    serving.served_plan("a")
    assert serving.finish(serving.ask("--child"))[0] == 0
    child = child_of(serving.room().folder / "server-1.log")
    kill(serving.room().state()["keeper"]["pid"])
    assert wait_for(lambda: not serving.services())
    assert lives(child)
    assert serving.finish(serving.ask("--child"))[0] == 0
    assert wait_for(lambda: not lives(child), 5)


def test_stop_ends_services_at_once_and_a_keeper_left_alone_too(serving):
    (key,) = serving.served_plan("a", rows=500, pause=0.1).steps
    process = serving.ask("--child")
    serving.service()
    child = child_of(serving.room().folder / "server-1.log")
    began = time.monotonic()
    assert stop(serving.store) == [key]
    assert time.monotonic() - began < 8
    assert not lives(child)
    assert serving.services() == []
    assert serving.none_left(0.5)
    assert not (serving.room().folder / "model").exists()
    assert serving.finish(process)[0] == 130


@SLOW
def test_an_interrupted_execution_leaves_no_server(serving):
    serving.served_plan("a", rows=500, pause=0.1)
    process = serving.ask()
    serving.service()
    process.send_signal(signal.SIGINT)
    assert serving.finish(process)[0] == 130
    assert serving.no_service(5)


BAD = {
    "refuses": (["--refuse", "no such model\nCUDA out of memory"], "ended with exit code 1 before it was ready"),
    "is sick": (["--sick"], "its server never became ready: python did not answer within 0.03 minutes"),
    "serves another": (["--name", "x", "--name", "y"], "lists x, y, and not served or "),
    "wants a key": (["--key", "PATH"], "refuses requests without a key"),
}


@pytest.mark.parametrize("what", [pytest.param(what, marks=SLOW if what == "is sick" else ()) for what in BAD])
def test_a_server_that_will_not_do_fails_its_step_at_once_with_the_reason(serving, what):
    options, reason = BAD[what]
    serving.served_plan("a")
    code, events = serving.finish(serving.ask(*options, service={"ready_minutes": 0.03 if what == "is sick" else 1}))
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert reason in failed["reason"]
    assert "server-1.log" in failed["reason"]
    assert ("CUDA out of memory" in failed["reason"]) == (what == "refuses")
    assert serving.no_service()


def test_a_server_may_print_megabytes_know_no_health_and_call_its_model_anything(serving):
    (key,) = serving.served_plan("a").steps
    assert serving.finish(serving.ask("--megabytes", "70", "--no-health", "--name", "mine"))[0] == 0
    assert serving.rows(key)[0]["model"] == "mine"
    assert (serving.room().folder / "server-1.log").stat().st_size < 10 << 20


@SLOW
def test_a_full_disk_keeps_the_address_back_until_there_is_room(serving):
    full = serving.folder / "full"
    fault = {"event": "os.rename", "below": str(serving.store.root / "services"), "error": "ENOSPC"}
    serving.served_plan("a")
    process = serving.ask("--slow", "1", faults=[{**fault, "while": str(full), "program": "cdpo.engine.services"}])
    serving.service("starting")
    full.touch()
    assert wait_for(lambda: "state.json cannot be written" in serving.room().log.read_text(), 10)
    time.sleep(0.5)
    assert serving.services()[0]["state"] == "starting"
    full.unlink()
    code, events = serving.finish(process)
    assert code == 0, events


@SLOW
@pytest.mark.parametrize("victim", ["nobody", "worker", "keeper", "server"])
def test_where_flock_is_not_trusted_claims_do_as_well(serving, victim):
    without = [{"event": "fcntl.flock", "below": str(serving.store.root), "error": "ENOLCK"}]
    one, two = serving.served_plan("a", "b", rows=15, pause=0.15).steps
    process = serving.ask("--child", faults=without)
    assert wait_for(lambda: serving.asked(one) > 2 and serving.asked(two) > 2)
    assert (serving.room().folder / "keeper.lock").is_dir()
    assert len(list((serving.room().folder / "users.lock").iterdir())) == 2
    server = serving.service()["pid"]
    pid = {"worker": proc(serving.store.work(one))["pid"], "server": server, "nobody": None}
    pid["keeper"] = serving.room().state()["keeper"]["pid"]
    if victim != "nobody":
        kill(pid[victim])
    code, events = serving.finish(process)
    assert code == (1 if victim == "worker" else 0), events
    assert len({row["pid"] for row in serving.rows(two)}) == (2 if victim in ("keeper", "server") else 1)
    assert serving.no_service()


def test_the_key_reaches_the_server_and_no_file(serving, monkeypatch):
    monkeypatch.setenv("ANSWERING_KEY", "sesame")
    (key,) = serving.served_plan("a").steps
    process = serving.ask("--key", "ANSWERING_KEY", service={"api_key": "ANSWERING_KEY"})
    code, events = serving.finish(process)
    assert code == 0, events
    files = [path for path in serving.store.root.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if b"sesame" in path.read_bytes()] == []
    assert read_json(serving.store.find(key) / "step.json")["device"]["service"]["api_key"] == "ANSWERING_KEY"


@pytest.mark.parametrize(
    ("services", "text"),
    [
        ({}, "ASK: `backend: openai` needs a server: write `services: {ASK: {server: vllm}}`"),
        ({"ASK": {"url": "http://127.0.0.1:9/v1"}}, "serves one model, and these steps are of 2: ASK/a-"),
        ({"ASK": {"server": ["/nowhere", "{port}", "{model}"]}}, "server: /nowhere is no program that can be started"),
        ({"ASK": {"server": "vllm", "python": "/no/python"}}, "python: /no/python is no program that can be started"),
        ({"ASK": {"server": "vllm", "api_key": "NO_SUCH"}}, "the environment variable NO_SUCH is not set"),
    ],
)
def test_a_step_that_cannot_have_its_server_is_refused_before_anything_runs(serving, services, text):
    serving.served_plan("a", "b", model={"a": "one", "b": "two"})
    code, events = serving.finish(serving.execute(devices={"services": services}, modules={"ASK": ASKING}))
    assert code == 1
    assert text in events[-1]["text"]
    assert not serving.told()
    assert os.path.exists(serving.folder)


def test_a_server_that_somebody_else_started_is_asked_and_left_alone(serving):
    (key,) = serving.served_plan("a").steps
    with serving.standing("--name", "theirs") as (server, url):
        code, events = serving.finish(
            serving.execute(devices={"services": {"ASK": {"url": url + "/"}}}, modules={"ASK": ASKING})
        )
        assert code == 0, events
        assert {(row["pid"], row["model"]) for row in serving.rows(key)} == {(server.pid, "theirs")}
        assert server.poll() is None
    assert serving.rooms() == []
    told = read_json(serving.store.find(key) / "step.json")["device"]["service"]
    assert (told["url"], told["api"], told["concurrency"]) == (url, "openai", 16)
