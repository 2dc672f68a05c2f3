"""What `engine: ray` refuses, and says of it: no Ray, no cluster, another one than it seems, too small a one."""

import json
import os
import subprocess
import sys

import pytest
import ray_cluster
from ray_room import heads

from cdpo.config.devices import Devices
from cdpo.engine.batch import job
from cdpo.engine.batch.backend import Unreachable
from cdpo.engine.batch.ray import Ray
from cdpo.errors import UsageError
from cdpo.store import Store


def test_nothing_of_ray_is_imported_before_it_is_needed():
    code = "import sys, cdpo.cli, cdpo.engine.batch.ray; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_ray_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'cdpo\[ray\]'"):
        Ray(Store(tmp_path), Devices(engine="ray"))


@pytest.mark.parametrize("address", ["local", "ray://head:10001", "head", "http://head:8265"])
def test_only_a_cluster_that_outlives_its_submitter(monkeypatch, tmp_path, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="HOST:PORT"):
        Ray(Store(tmp_path), Devices(engine="ray", ray={"address": address}))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UsageError, match="HOST:PORT"):
        Ray(Store(tmp_path), Devices(engine="ray"))


def test_ray_alone_gives_out_gpus(tmp_path):
    with pytest.raises(UsageError, match="gpus"):
        Ray(Store(tmp_path), Devices(engine="ray", gpus=[1]))


def test_nobody_listens(tmp_path):
    backend = Ray(Store(tmp_path), Devices(engine="ray", ray={"address": f"127.0.0.1:{ray_cluster.free_port()}"}))
    with pytest.raises(Unreachable, match="ray start --head"):
        backend.living()


@pytest.mark.slow
def test_no_cluster_is_started_behind_the_users_back(tmp_path, monkeypatch):
    if heads():
        pytest.skip("another Ray runs on this machine, and `auto` would find it")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="ray start --head"):
        Ray(Store(tmp_path), Devices(engine="ray")).living()
    assert not heads()


@pytest.mark.slow
def test_auto_finds_the_cluster_of_this_machine_and_stays_with_it(room):
    if heads() > 1:
        pytest.skip("another Ray runs on this machine, and `auto` may find that")
    backend = room.backend(ray={"address": "auto"})
    assert backend.living() == {}
    assert backend._address == room.cluster.address


@pytest.mark.slow
def test_a_store_that_its_nodes_do_not_see(room):
    plan = room.bench.plan({"a": []})
    (step,) = plan.steps.values()
    with pytest.raises(UsageError, match="every node of a Ray cluster must see the store"):
        room.backend().submit(step, job.command(room.bench.store, step.key), [])


@pytest.mark.slow
def test_what_no_node_can_run_is_refused(room):
    plan = room.bench.plan({"a": []})
    (step,) = plan.steps.values()
    command = job.command(room.bench.store, step.key)
    three = {"TRIVIAL": {"processes": 3}}
    with pytest.raises(UsageError, match=r"3 CPUs and 3 GPUs on one node.*at most 2 and 2.*gpus: \[\]"):
        room.backend(gpus="auto", pipelines=three).submit(step, command, [])
    with pytest.raises(UsageError, match="6 CPUs and 0 GPUs"):
        room.backend(ray={"address": room.cluster.address, "cpus": 2}, pipelines=three).submit(step, command, [])


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the processes of a machine")
def test_a_machine_that_is_no_node_of_the_cluster(room, tmp_path):
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-P", "-m", "cdpo.engine.batch.ray_driver"]
    done = subprocess.run(
        [*command, room.cluster.address, "nobody", str(tmp_path)], stdout=subprocess.PIPE, input=b"", timeout=60
    )
    assert f"`ray start --address={room.cluster.address}`" in json.loads(done.stdout)["refused"]


@pytest.mark.slow
def test_another_version_of_ray(room, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import ray\nray.__version__ = '2.0.0'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # set by cdpo too, and here too late: Ray reads it when it is imported
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UsageError, match=r"(?s)Version mismatch.*2\.0\.0"):
        room.backend().living()


@pytest.mark.slow
def test_a_wrong_token(room, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with pytest.raises(UsageError, match="token"):
        room.backend().living()
