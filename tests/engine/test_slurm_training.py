"""A training on a real SLURM, told to stop in the middle: it saves, its job is queued again, and it goes on from there.

Of one process, of two on one node, and of two nodes, which here are both this machine.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import slurm_cluster
from engine_bench import of_kind, wait_for

from cdpo.config.devices import Devices
from cdpo.engine.batch.slurm import Slurm
from cdpo.engine.process import identity
from cdpo.plan.graph import PlannedStep
from cdpo.store import Store
from tests.conftest import run_cdpo, write_project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(slurm_cluster.missing() is not None, reason=str(slurm_cluster.missing())),
]

DATASETS = "small: {rule: playground, gold: playground, playground: {train: 64, tune: 16, eval: 24}}\n"
TASKS = """\
tag: t
pipelines: [SFT]
model: [tiny]
dataset: [small]
tasks: [{pipeline: SFT}]
SFT: {learning_rate: 2e-3, max_steps: 120, batch_size: 8}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"), nodes=2)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def project(cluster, tmp_path, monkeypatch):
    """Makes a project, prepared, whose steps are `layout` in devices.yaml's words."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)

    def make(layout):
        devices = f"engine: slurm\ngpus: []\npipelines: {{SFT: {{{layout}}}}}\n"
        folder = write_project(tmp_path, TASKS, datasets=DATASETS, devices=devices)
        run_cdpo("prep", cwd=folder)
        return folder

    yield make
    cluster.clear()


@pytest.fixture
def execute():
    """Starts `cdpo execute`, whose events go to a file of the project."""
    started = []

    def start(folder):
        command = [sys.executable, "-m", "cdpo.cli", "execute", "--display", "json"]
        with open(folder / "events", "w") as told:
            started.append(subprocess.Popen(command, cwd=folder, stdout=told, env=os.environ))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def events(folder, kind):
    """What `execute` told of the training."""
    lines = (folder / "events").read_text().splitlines(keepends=True)
    found = of_kind([json.loads(line) for line in lines if line.endswith("\n")], kind)
    return [event for event in found if event.get("pipeline") == "SFT"]


def trains(folder):
    return wait_for(lambda: any(event["done"] >= 10 for event in events(folder, "step_progress")), 240)


@pytest.mark.parametrize(
    "layout, how",
    [
        ("processes: 1", "warning"),
        ("processes: 2", "requeue"),
        ("processes: 2, nodes: 2", "warning"),
        ("processes: 2, nodes: 2", "requeue"),
    ],
)
def test_a_training_goes_on_where_it_was_told_to_stop(cluster, project, execute, layout, how):
    folder = project(layout)
    execution = execute(folder)
    assert trains(folder), told_by(folder)
    (job,) = (id for id, name in cluster.named().items() if name.startswith("SFT-"))
    if how == "warning":
        # as SLURM does before a time limit: only what runs under srun is told
        cluster.ask("scancel", "--signal=TERM", job, check=True)
    else:
        cluster.ask("scontrol", "requeue", job, check=True)
    assert execution.wait(300) == 0, told_by(folder)
    assert [event["attempt"] for event in events(folder, "step_started")] == [1, 2], told_by(folder)
    said = " ".join(event["text"] for event in events(folder, "note"))
    (stopped,) = re.findall(r"stopped after optimiser step (\d+)", said)
    (gone_on,) = re.findall(r"goes on from optimiser step (\d+) of", said)
    assert int(stopped) == int(gone_on) >= 10
    assert not events(folder, "step_failed")


def test_stop_ends_the_jobs_that_a_killed_execution_left(cluster, project, execute):
    folder = project("processes: 2")
    execution = execute(folder)
    assert trains(folder), told_by(folder)
    execution.kill()
    said = run_cdpo("stop", cwd=folder).stdout
    assert said.startswith("cancelled the job of ")
    assert wait_for(lambda: not cluster.jobs(), 30)
    assert run_cdpo("stop", cwd=folder).stdout == "nothing runs in this store\n"
    # it saved what it had
    assert list((folder / ".cdpo").glob("work/*/ckpt/checkpoint-*/complete.json")), told_by(folder)


def test_a_worker_beside_its_launchers_ends_with_its_job(cluster, project, tmp_path):
    devices = {"engine": "slurm", "gpus": [], "pipelines": {"SFT": {"processes": 2, "nodes": 2}}}
    backend = Slurm(Store(tmp_path / "store"), Devices.model_validate(devices))
    step = PlannedStep("ab" * 32, "SFT", "deaf", 1, {}, {}, 0)
    deaf = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(99)"
    job = backend.submit(step, [sys.executable, "-c", deaf], [])
    assert wait_for(lambda: backend.look([job])[job].kind == "running", 30)
    log = backend.look([job])[job].log
    assert wait_for(lambda: log.exists() and log.read_text().endswith("\n"), 30)
    cluster.ask("scancel", job, check=True)
    assert wait_for(lambda: backend.look([job])[job].kind == "ended", 40)
    with pytest.raises(ProcessLookupError):
        identity(int(log.read_text().split()[0]))


def told_by(folder):
    """What there is to read when it goes wrong."""
    logs = sorted((folder / ".cdpo").glob("work/*/attempt-*.log")) + sorted(
        (folder / ".cdpo").glob("jobs/slurm/*/*.out")
    )
    return (folder / "events").read_text()[-3000:] + "".join(f"\n== {log}\n{log.read_text()[-3000:]}" for log in logs)
