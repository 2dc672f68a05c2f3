"""Servers of steps that a batch system runs: of one job each, ended with it, and given the GPUs of the job."""

import os
import subprocess
import sys

import pytest
from engine_bench import HERE, of_kind
from serving import ASKING, Serving, child_of, lives

from cdpo.config.devices import Devices
from cdpo.engine.batch.ray import Ray
from cdpo.engine.batch.slurm import Slurm
from cdpo.files import read_json


@pytest.fixture
def serving(tmp_path, machine):
    bench = Serving(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def system(serving, monkeypatch):
    """The batch system of queueing.py, whose jobs are given the second card."""
    room = serving.folder / "queue"
    room.mkdir()
    environment = {**os.environ, "PYTHONPATH": serving.paths, "CUDA_VISIBLE_DEVICES": "1"}
    process = subprocess.Popen([sys.executable, str(HERE / "queueing.py"), str(room)], env=environment)
    yield room
    process.terminate()
    process.wait()


def test_each_job_has_a_server_of_its_own_that_ends_with_it(serving, system):
    plan = serving.served_plan("a", "b", rows=3)
    options = ["--child", "--diary", str(serving.diary)]
    code, events = serving.finish(serving.ask(*options, batch=True, devices={"gpus": "auto"}))
    assert code == 0, events
    # the worker waited for the end of its server
    ends = sorted(room.state()["time"] for room in serving.rooms())
    finished = sorted(read_json(serving.store.find(key) / "manifest.json")["finished"] for key in plan.steps)
    assert all(end <= after for end, after in zip(ends, finished, strict=True))
    assert {room.state()["state"] for room in serving.rooms()} == {"ended"}
    assert serving.started() == 2
    started = [line for line in serving.diary.read_text().splitlines() if line.startswith("server ")]
    assert {line.split()[2] for line in started} == {"GPU-aabb-2"}
    assert all(not lives(child_of(room.folder / "server-1.log")) for room in serving.rooms())
    first, second = ({row["pid"] for row in serving.rows(key)} for key in plan.steps)
    assert first.isdisjoint(second)
    assert not of_kind(events, "step_failed")


def test_a_job_of_a_step_without_its_server_is_not_queued(serving, system):
    serving.served_plan("a")
    code, events = serving.finish(serving.execute(batch=True, modules={"ASK": ASKING}))
    assert code == 1
    assert "`backend: openai` needs a server" in events[-1]["text"]
    assert list(system.glob("*.job")) == []


def test_jobs_ask_for_the_gpus_of_the_server(serving, monkeypatch):
    (step,) = serving.served_plan("a").steps.values()

    def devices(**service):
        engine = {"engine": "slurm", "slurm": {"cpus": 4}, "pipelines": {"ASK": {"processes": 1}}}
        return Devices.model_validate({**engine, "services": {"ASK": service}})

    def asked(devices):
        slurm = Slurm.__new__(Slurm)
        slurm.devices, slurm.params, slurm.options, slurm.mark = devices, devices.slurm, {}, "mark"
        found = slurm._parameters(step, [])
        told = []
        ray = Ray.__new__(Ray)
        ray.devices = devices
        monkeypatch.setattr(ray, "_ask", lambda *request: told.append(request[1]))
        ray.submit(step, [], [])
        return found["nodes"], found["gpus_per_node"], found["cpus_per_task"], told[0]["gpus"]

    assert asked(devices(server="vllm", processes=2)) == (1, 2, 8, 2)
    assert asked(devices(url="http://127.0.0.1:1/v1")) == (1, None, 4, 0)
