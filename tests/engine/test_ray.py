"""Plans on a real Ray: one that `ray start` starts for these tests, on ports and in a folder of its own.

What is killed here: whoever submitted, a step's worker, the Ray worker around it, the actor, a node, the head.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray_cluster
from engine_bench import HERE, of_kind, wait_for

from cdpo.config.devices import Devices
from cdpo.engine import job
from cdpo.engine.backend import Unreachable, mark
from cdpo.engine.batch import stop
from cdpo.engine.process import identity
from cdpo.engine.ray import Ray
from cdpo.errors import UsageError
from cdpo.files import read_json_lines
from cdpo.store import Store
from tests.conftest import run_cdpo, write_project

DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
TORTURE = {"TRIVIAL": str(HERE / "torture_step.py")}


# without a cluster


def test_nothing_of_ray_is_imported_before_it_is_needed():
    code = "import sys, cdpo.cli, cdpo.engine.ray; sys.exit('ray' in sys.modules)"
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


def heads():
    """How many Ray clusters have their head on this machine."""
    count = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            count += (entry / "cmdline").read_bytes().split(b"\0")[0].endswith(b"/gcs_server")
    return count


# with one


def start_cluster(cpus, gpus=0):
    reason = ray_cluster.missing()
    if reason:
        pytest.skip(reason)
    # a short path, because Ray puts sockets below it
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    cluster = ray_cluster.Cluster(folder, cpus, gpus)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            gone = wait_for(lambda: not cluster.pids(), 20)
            shutil.rmtree(folder, ignore_errors=True)
    assert gone, "Ray left processes behind"


@pytest.fixture(scope="module")
def shared():
    yield from start_cluster(cpus=2, gpus=2)


@pytest.fixture
def own():
    """A cluster for one test, that may break it."""
    yield from start_cluster(cpus=1)


class Room:
    """A bench whose plans run on a cluster."""

    def __init__(self, bench, cluster):
        self.bench, self.cluster = bench, cluster
        self.devices = {"engine": "ray", "ray": {"address": cluster.address}}
        self.others = set(cluster.pids("ray::Jobs"))

    def execute(self, **options):
        return self.bench.execute(devices=self.devices, **options)

    def finish(self, process):
        return self.bench.finish(process, timeout=120)

    def run(self, **options):
        return self.finish(self.execute(**options))

    def backend(self, **devices):
        return Ray(self.bench.store, Devices.model_validate({"gpus": [], **self.devices, **devices}))

    def begun(self, name, times=1):
        return wait_for(lambda: self.bench.told()["begin", name] == times, 60)

    def worker(self, name):
        """Pid of the latest worker of a step."""
        lines = [line.split() for line in self.bench.diary.read_text().splitlines()]
        return [int(pid) for what, which, pid in lines if (what, which) == ("begin", name)][-1]

    def actor(self):
        """Pid of the actor of this store."""
        assert wait_for(lambda: set(self.cluster.pids("ray::Jobs")) - self.others, 20)
        (pid,) = set(self.cluster.pids("ray::Jobs")) - self.others
        return pid

    def kill_actor_for_good(self):
        name = f"cdpo-{mark(self.bench.store)}"
        code = f"import ray; ray.init({self.cluster.address!r}, namespace='cdpo', log_to_driver=False)\n"
        code += f"ray.kill(ray.get_actor({name!r}))"
        environment = {**os.environ, "RAY_AUTH_MODE": "token"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=60)


@pytest.fixture
def room(bench, shared):
    return Room(bench, shared)


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def gone(pid):
    try:
        identity(pid)
    except ProcessLookupError:
        return True
    return False


def notes(events, text):
    return [event for event in of_kind(events, "note") if text in event["text"]]


@pytest.mark.slow
def test_a_plan_in_its_order(room):
    room.bench.plan(DIAMOND)
    code, events = room.run()
    assert code == 0
    assert [event["found"] for event in of_kind(events, "step_queued")] == [False] * 4
    final = next(path for path in room.bench.store.finished().values() if path.name.startswith("d-"))
    assert (final / "out" / "value.txt").read_text() == "a\nb\na\nc\nd\n"
    manifest = json.loads((final / "manifest.json").read_text())
    assert manifest["summary"]["visible"] == "", "no GPU for a step that asked for none"
    code, events = room.run()
    assert code == 0
    assert not of_kind(events, "step_queued")


@pytest.mark.slow
def test_the_submitter_is_killed_and_the_next_finds_its_jobs(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan(DIAMOND, a={"gate": str(gate)})
    first = room.execute()
    assert room.begun("a")
    first.kill()
    first.wait()
    second = room.execute()
    assert room.bench.happened("step_queued", 8)
    gate.touch()
    code, events = room.finish(second)
    assert code == 0
    assert all(event["found"] for event in of_kind(events, "step_queued"))
    assert all(room.bench.told()["begin", name] == 1 for name in DIAMOND)


@pytest.mark.slow
def test_the_jobs_need_nobody(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan(DIAMOND, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    execution.kill()
    execution.wait()
    time.sleep(1)
    gate.touch()
    assert wait_for(lambda: len(room.bench.store.finished()) == 4, 60)


@pytest.mark.slow
def test_who_leaves_leaves_the_jobs_alone(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan({"a": []}, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    execution.send_signal(signal.SIGINT)
    assert room.finish(execution)[0] == 130
    gate.touch()
    assert wait_for(lambda: len(room.bench.store.finished()) == 1, 60)


@pytest.mark.slow
def test_two_executions_submit_each_job_once(room):
    room.bench.plan(DIAMOND, a={"seconds": 1})
    both = [room.execute(), room.execute()]
    ended = [room.finish(each) for each in both]
    assert [code for code, _ in ended] == [0, 0]
    assert all(room.bench.told()["begin", name] == 1 for name in DIAMOND)
    queued = [event for _, events in ended for event in of_kind(events, "step_queued")]
    assert sum(not event["found"] for event in queued) == 4


@pytest.mark.slow
def test_a_failure_comes_with_its_log_and_blocks_what_needs_it(room):
    room.bench.plan({**DIAMOND, "e": []}, b={"raise": "no such thing"})
    code, events = room.run()
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert "no such thing" in failed["reason"]
    assert any("no such thing" in line for line in failed["tail"])
    assert [event["name"] for event in of_kind(events, "step_blocked")] == ["d"]
    assert {event["name"] for event in of_kind(events, "step_done")} == {"a", "c", "e"}
    assert room.bench.told()["begin", "b"] == 1
    assert room.backend().living() == {}


@pytest.mark.slow
def test_what_a_job_says_before_its_step_has_a_log(room, tmp_path):
    """Here: on a node that does not see the store."""
    gate = tmp_path / "gate"
    plan = room.bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    job.job_path(room.bench.store, list(plan.steps)[1]).unlink()
    gate.touch()
    code, events = room.finish(execution)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert "every node that runs steps must see the store" in failed["reason"]


@pytest.mark.slow
def test_a_killed_worker_is_a_failure_and_the_next_execution_makes_the_rest(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan(DIAMOND, b={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("b")
    assert wait_for(lambda: room.bench.told()["end", "c"], 60)
    os.kill(room.worker("b"), signal.SIGKILL)
    code, events = room.finish(execution)
    assert code == 1
    (failed,) = of_kind(events, "step_failed")
    assert failed["name"] == "b"
    assert "SIGKILL" in failed["reason"]
    gate.touch()
    assert room.run()[0] == 0
    assert room.bench.told()["begin", "a"] == room.bench.told()["begin", "c"] == 1


@pytest.mark.slow
def test_a_killed_ray_worker_takes_its_job_along_and_ray_goes_on_from_the_checkpoint(room):
    diary = room.bench.diary
    room.bench.plan({"a": [], "b": ["a"]}, a={"units": 24, "unit_seconds": 0.1}, b={"units": 1, "unit_seconds": 0})
    execution = room.execute(modules=TORTURE)

    def units():
        return [line["unit"] for line in read_json_lines(diary) if line["step"] == "a" and line["what"] == "unit"]

    assert wait_for(lambda: diary.exists() and len(units()) >= 10, 60)
    (worker,) = [int(line["life"].split("-")[0]) for line in read_json_lines(diary) if line["what"] == "begin"]
    os.kill(parent_of(worker), signal.SIGKILL)
    assert wait_for(lambda: gone(worker), 5), "the job outlived its Ray worker"
    code, events = room.finish(execution)
    assert code == 0
    assert [event["attempt"] for event in of_kind(events, "step_started") if event["name"] == "a"] == [1, 2]
    computed = units()
    assert set(computed) == set(range(24))
    assert len(computed) <= 24 + 4, "more was lost than what came after the last checkpoint"
    assert not of_kind(events, "step_failed")


@pytest.mark.slow
def test_a_stopped_job_is_run_again(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan({"a": [], "b": ["a"]}, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    os.kill(room.worker("a"), signal.SIGTERM)
    assert room.begun("a", 2)
    gate.touch()
    assert room.finish(execution)[0] == 0


@pytest.mark.slow
def test_but_not_for_ever(room):
    room.bench.plan({"a": [], "b": ["a"]}, a={"exit": 143})
    code, events = room.run()
    assert code == 1
    assert room.bench.told()["begin", "a"] == 4
    assert "stopped 4 times" in of_kind(events, "step_failed")[0]["reason"]
    assert [event["name"] for event in of_kind(events, "step_blocked")] == ["b"]


@pytest.mark.slow
def test_stop_ends_jobs_by_sigterm_and_the_next_execution_goes_on(room, tmp_path):
    gate = tmp_path / "gate"
    plan = room.bench.plan(DIAMOND, a={"gate": str(gate)})
    execution = room.execute()
    assert room.begun("a")
    worker = room.worker("a")
    assert set(stop(room.backend(), room.bench.store)) == set(plan.steps)
    assert wait_for(lambda: gone(worker), 10)
    assert room.finish(execution)[0] == 1
    assert room.backend().living() == {}
    assert room.bench.told()["begin", "a"] == 1, "a cancelled job is not started again"
    gate.touch()
    assert room.run()[0] == 0


@pytest.mark.slow
def test_a_stopped_worker_may_write_its_checkpoint(room, tmp_path):
    (tmp_path / "obedient.py").write_text(
        "import time\n"
        "def run(step):\n"
        "    open(step.params['diary'], 'a').write('begin a 0\\n')\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    except BaseException:\n"
        "        time.sleep(1)\n"
        "        open(step.params['diary'], 'a').write('saved a 0\\n')\n"
        "        raise\n"
    )
    room.bench.plan({"a": []})
    execution = room.execute(modules={"TRIVIAL": str(tmp_path / "obedient.py")})
    assert room.begun("a")
    stop(room.backend(), room.bench.store)
    assert wait_for(lambda: room.bench.told()["saved", "a"], 20)
    assert room.finish(execution)[0] == 1


@pytest.mark.slow
def test_cdpo_stop(room, tmp_path):
    room.bench.plan({"a": [], "b": ["a"]}, a={"gate": str(tmp_path / "gate")})
    write_project(tmp_path, "tag: none\n", devices=json.dumps({"gpus": [], **room.devices}))
    execution = room.execute()
    assert room.begun("a")
    done = run_cdpo("stop", "--store", room.bench.store.root, cwd=tmp_path)
    assert done.stdout.count("cancelled the job of") == 2
    assert room.bench.none_left()
    assert room.finish(execution)[0] == 1
    done = run_cdpo("stop", "--store", room.bench.store.root, cwd=tmp_path)
    assert done.stdout == "nothing runs in this store\n"


@pytest.mark.slow
def test_a_job_that_does_not_obey_is_killed(room, monkeypatch):
    from cdpo.engine import ray_jobs

    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    process.stdout.read(1)
    monkeypatch.setattr(ray_jobs, "GRACE", 0.2)
    ray_jobs._end(process)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_actor_is_started_again_and_goes_on(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan({**DIAMOND, "x": [], "y": ["x"]}, b={"gate": str(gate)}, x={"raise": "no"})
    execution = room.execute()
    assert room.begun("b")
    # a and c published: a step that has only said its last would rightly be made again
    assert wait_for(lambda: len(room.bench.store.finished()) == 2 and room.bench.happened("step_failed"), 60)
    worker = room.worker("b")
    os.kill(room.actor(), signal.SIGKILL)
    assert room.begun("b", 2)
    assert gone(worker), "two workers of one step"
    gate.touch()
    code, events = room.finish(execution)
    assert code == 1
    assert [event["name"] for event in of_kind(events, "step_failed")] == ["x"]
    told = room.bench.told()
    assert told["begin", "a"] == told["begin", "c"] == told["begin", "d"] == told["begin", "x"] == 1
    assert told["begin", "y"] == 0
    assert len(of_kind(events, "step_queued")) == 6, "the actor itself remembers what it was given"


@pytest.mark.slow
def test_an_actor_that_is_killed_for_good_takes_its_jobs_along_and_they_are_queued_again(room, tmp_path):
    gate = tmp_path / "gate"
    room.bench.plan(DIAMOND, a={"gate": str(gate)})
    both = [room.execute(), room.execute()]
    assert room.begun("a")
    assert room.bench.happened("step_queued", 8)
    worker = room.worker("a")
    room.kill_actor_for_good()
    assert room.begun("a", 2)
    assert gone(worker), "two workers of one step"
    gate.touch()
    ended = [room.finish(each) for each in both]
    assert [code for code, _ in ended] == [0, 0]
    assert all(room.bench.told()["begin", name] == 1 for name in "bcd")
    queued = [event for _, events in ended for event in of_kind(events, "step_queued")]
    assert sum(not event["found"] for event in queued) == 8, "each is submitted again by one of the two"


@pytest.mark.slow
def test_the_job_of_a_parent_that_failed_takes_down_its_own(room):
    plan = room.bench.plan({"a": [], "b": ["a"], "c": ["b"]}, a={"raise": "no"})
    backend, ids = room.backend(), []
    for step in plan.steps.values():
        parents = {parent: plan.steps[parent] for parent in step.parents}
        job.describe(room.bench.store, step, backend.devices, str(HERE / "trivial.py"), parents)
        ids.append(backend.submit(step, job.command(room.bench.store, step.key), ids[-1:]))
    assert wait_for(lambda: {each.kind for each in backend.look(ids).values()} == {"ended"}, 30)
    assert [each.orphaned for each in backend.look(ids).values()] == [False, True, True]
    late = backend.submit(step, job.command(room.bench.store, step.key), ids[:1])
    assert backend.look([late])[late].orphaned
    assert backend.living() == {}


@pytest.mark.slow
def test_a_job_is_taken_once_however_often_it_is_handed_in(room, tmp_path):
    plan = room.bench.plan({"a": []}, a={"gate": str(tmp_path / "gate")})
    (step,) = plan.steps.values()
    backend = room.backend()
    job.describe(room.bench.store, step, backend.devices, str(HERE / "trivial.py"), {})
    handed = []
    asked = backend._ask
    backend._ask = lambda *request: handed.append(request) or asked(*request)
    backend.submit(step, job.command(room.bench.store, step.key), [])
    asked(*handed[0])
    (tmp_path / "gate").touch()
    assert wait_for(lambda: backend.living() == {}, 30)
    assert room.bench.told()["begin", "a"] == 1


@pytest.mark.slow
def test_auto_finds_the_cluster_of_this_machine_and_stays_with_it(room):
    if heads() > 1:
        pytest.skip("another Ray runs on this machine, and `auto` may find that")
    backend = room.backend(ray={"address": "auto"})
    assert backend.living() == {}
    assert backend._address == room.cluster.address


@pytest.mark.slow
def test_an_actor_without_work_leaves(room):
    code = f"""
import ray, time
from cdpo.engine.ray_jobs import Jobs
ray.init({room.cluster.address!r}, namespace="cdpo", log_to_driver=False)
actor = ray.remote(Jobs).options(name="idle", lifetime="detached", num_cpus=0, max_restarts=-1)
actor = actor.remote({str(room.bench.store.root)!r}, 1.0)
ray.get(actor.living.remote())
time.sleep(4)
try:
    ray.get_actor("idle")
except ValueError:
    print("left")
"""
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "left\n", done.stderr


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
def test_each_step_has_the_gpu_that_ray_gives_it(room):
    room.bench.plan({"a": [], "b": []}, a={"seconds": 3}, b={"seconds": 3})
    room.devices["gpus"] = "auto"
    assert room.run()[0] == 0
    manifests = [json.loads((path / "manifest.json").read_text()) for path in room.bench.store.finished().values()]
    assert {manifest["summary"]["visible"] for manifest in manifests} == {"GPU-0", "GPU-1"}
    assert {manifest["device"]["gpus"][0]["uuid"] for manifest in manifests} == {"GPU-0", "GPU-1"}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide the processes of a machine")
def test_a_machine_that_is_no_node_of_the_cluster(room, tmp_path):
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-P", "-m", "cdpo.engine.ray_driver"]
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


@pytest.mark.slow
def test_a_node_is_lost_and_its_job_goes_on_elsewhere(bench, own, tmp_path):
    """The node came after the submitter had gone."""
    gate = tmp_path / "gate"
    bench.plan({"a": [], "b": [], "c": ["a", "b"]}, a={"gate": str(gate)}, b={"gate": str(gate)})
    room = Room(bench, own)
    first = room.execute()
    assert wait_for(lambda: sum(bench.told()["begin", name] for name in "ab") == 1, 60)
    first.kill()
    first.wait()
    node = own.add_node()
    assert wait_for(lambda: sum(bench.told()["begin", name] for name in "ab") == 2, 60)
    (worker,) = [room.worker(name) for name in "ab" if os.getsid(parent_of(room.worker(name))) == node.pid]
    own.kill(node)
    assert wait_for(lambda: gone(worker), 20)
    gate.touch()
    assert wait_for(lambda: len(bench.store.finished()) == 3, 120)


@pytest.mark.slow
def test_the_head_is_gone_and_comes_back(bench, own, tmp_path):
    room = Room(bench, own)
    bench.plan({"a": [], "b": ["a"]}, a={"gate": str(tmp_path / "gate")})
    execution = room.execute()
    assert room.begun("a")
    worker = room.worker("a")
    own.kill(own.head)
    assert wait_for(lambda: notes(read_json_lines(bench.store.events), "ray start --head"), 60)
    assert wait_for(lambda: gone(worker), 60), "the job outlived its cluster"
    with pytest.raises(Unreachable, match="ray start --head"):
        room.backend().living()
    assert execution.poll() is None
    (tmp_path / "gate").touch()
    own.start()
    code, events = room.finish(execution)
    assert code == 0
    assert not of_kind(events, "step_failed")
    assert len(notes(events, "ray start --head")) == 1
