"""Slurm without a SLURM: what a job is asked to have, and what accounts, GPUs and other releases of SLURM say.

Its commands are stand-ins that print what was recorded. All that a real SLURM can show is in test_slurm.py.
"""

import os
import sys

import pytest

from cdpo.config.devices import Devices
from cdpo.engine.batch.backend import Unreachable
from cdpo.engine.batch.slurm import COMMANDS, Slurm
from cdpo.engine.batch.slurm_state import read_exit_code, read_squeue, state_of
from cdpo.errors import UsageError
from cdpo.plan.graph import PlannedStep
from cdpo.store import Store

KEY = "ab" * 32
STEP = PlannedStep(KEY, "DPO", "tiny_s0", 1, {}, {}, 0)
#: sacct 23.02, --parsable2 --allocations
SACCT = """\
11|COMPLETED|0:0
12|OUT_OF_MEMORY|0:125
13|TIMEOUT|0:0
14|NODE_FAIL|1:0
15|PREEMPTED|0:0
16|CANCELLED by 1000|0:15
17|FAILED|3:0
18|RUNNING|0:0
"""


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A folder of stand-ins for SLURM's commands, on the PATH: each prints what `say` gives it."""
    room = tmp_path / "bin"
    room.mkdir()
    monkeypatch.setenv("PATH", f"{room}:/usr/bin:/bin")

    def say(command, out="", error="", code=0):
        path = room / command
        path.write_text(f"#!{sys.executable}\nimport sys\nprint({out!r}, end='')\n")
        with open(path, "a") as script:
            script.write(f"print({error!r}, end='', file=sys.stderr)\nsys.exit({code})\n")
        path.chmod(0o755)

    for command in (*COMMANDS, "sacct"):
        say(command)
    return say


def backend(tmp_path, **devices):
    return Slurm(Store(tmp_path / "store"), Devices.model_validate({"engine": "slurm", **devices}))


def script_of(tmp_path, commands, **devices):
    """The #SBATCH lines and the rest of what would be submitted."""
    commands("sbatch", "Submitted batch job 4711\n")
    slurm = backend(tmp_path, **devices)
    assert slurm.submit(STEP, ["python", "-m", "x y"], ["1", "2"]) == "4711"
    text = (tmp_path / "store" / "jobs" / "slurm" / KEY / "4711_submission.sh").read_text()
    lines = text.splitlines()
    flags = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    return flags, [line for line in lines if not line.startswith("#")]


def test_accounts_tell_how_jobs_ended_that_slurm_has_forgotten(tmp_path, commands):
    commands("sacct", SACCT)
    slurm = backend(tmp_path)
    states = slurm.look([str(number) for number in range(11, 20)])
    assert {id: (state.kind, state.reason, state.orphaned) for id, state in states.items()} == {
        "11": ("ended", "COMPLETED", False),
        "12": ("ended", "OUT_OF_MEMORY", False),
        "13": ("ended", "TIMEOUT", False),
        "14": ("ended", "NODE_FAIL", True),
        "15": ("ended", "PREEMPTED", True),
        "16": ("ended", "CANCELLED", False),
        "17": ("ended", "FAILED (exit code 3)", False),
        # accounts that lag behind: SLURM itself has forgotten it, so that it is over
        "18": ("unknown", states["19"].reason, False),
        "19": ("unknown", states["19"].reason, False),
    }
    assert "how it ended was not recorded" in states["19"].reason


def test_a_cluster_without_accounts_is_asked_for_them_once(tmp_path, commands):
    commands("sacct", error="Slurm accounting storage is disabled\n", code=1)
    slurm = backend(tmp_path)
    assert slurm.look(["11"])["11"].kind == "unknown"
    commands("sacct", SACCT)
    assert slurm.look(["11"])["11"].kind == "unknown"


def test_accounts_that_do_not_answer_now_are_asked_again(tmp_path, commands):
    commands("sacct", error="sacct: error: slurm_persist_conn_open_without_init: Connection refused\n", code=1)
    slurm = backend(tmp_path)
    assert slurm.look(["13"])["13"].kind == "unknown"
    commands("sacct", SACCT)
    assert slurm.look(["13"])["13"].reason == "TIMEOUT"


def test_the_queue_of_one_store(tmp_path, commands):
    slurm = backend(tmp_path)
    name = f"DPO-a|b.{slurm.mark}.{KEY}"
    listed = [f"21|RUNNING|None|{name}", "22|PENDING|Priority|someone's", f"23|RUNNING|None|x.{'0' * 12}.{KEY}"]
    found = read_squeue("\n".join(listed), slurm.mark)
    assert [(job.id, job.state, job.key) for job in found] == [("21", "RUNNING", KEY)]
    # a job that was submitted again lives under its last number
    commands("squeue", f"9|PENDING|DependencyNeverSatisfied|{name}\n10|PENDING|Priority|{name}\n")
    assert slurm.living() == {KEY: "10"}
    commands("squeue", f"9|PREEMPTED|None|{name}\n8|CANCELLED|None|{name}\n")
    assert slurm.living() == {}


@pytest.mark.parametrize(
    "word, reason, kind, orphaned",
    [
        ("CONFIGURING", "None", "waiting", False),
        ("REQUEUE_HOLD", "JobHeldUser", "waiting", False),
        ("SUSPENDED", "None", "waiting", False),
        ("COMPLETING", "None", "running", False),
        ("PENDING", "DependencyNeverSatisfied", "waiting", True),
        ("CANCELLED", "DependencyNeverSatisfied", "waiting", True),
        ("BOOT_FAIL", "None", "ended", True),
        ("DEADLINE", "None", "ended", False),
    ],
)
def test_the_states_of_slurm(word, reason, kind, orphaned):
    state = state_of(word, reason)
    assert (state.kind, state.orphaned) == (kind, orphaned)


def test_exit_codes_and_signals():
    text = "JobId=7 JobName=x JobState=FAILED Reason=NonZeroExitCode Restarts=0 DerivedExitCode=0:0 ExitCode=137:0 "
    assert read_exit_code(text) == "137:0"
    assert state_of("FAILED", "NonZeroExitCode", "1:9").reason == "FAILED (exit code 1, signal 9)"


def test_what_a_job_asks_for(tmp_path, commands, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/my modules")
    flags, lines = script_of(
        tmp_path,
        commands,
        slurm={
            "partition": "long", "account": "lab", "qos": "high", "hours": 1.5, "cpus": 3, "memory_gib": 62.5,
            "setup": ["module load cuda"], "options": {"constraint": "a100", "exclusive": True, "mail-type": "FAIL"},
        },
        pipelines={"DPO": {"processes": 4}},
    )  # fmt: skip
    assert flags >= {
        "partition=long", "account=lab", "qos=high", "time=90", "cpus-per-task=12", "mem=64000M", "gpus-per-node=4",
        "nodes=1", "ntasks-per-node=1", "dependency=afterok:1:2", "kill-on-invalid-dep=no", "requeue", "export=ALL",
        "signal=TERM@120", "constraint=a100", "exclusive", "mail-type=FAIL", "open-mode=append",
    }  # fmt: skip
    assert not any("wckey" in flag for flag in flags)
    (worker,) = (line for line in lines if line.startswith("srun"))
    assert worker.endswith("--cpus-per-task=12 python -m 'x y'")
    setup = lines.index("module load cuda")
    assert lines[setup + 1] == "export PYTHONPATH='/my modules'"
    assert setup < lines.index(worker)


def test_defaults_are_the_clusters(tmp_path, commands):
    flags, _ = script_of(tmp_path, commands, gpus=[])
    names = {flag.partition("=")[0] for flag in flags}
    assert not names & {"time", "partition", "account", "qos", "mem", "gpus-per-node", "gres"}


@pytest.mark.parametrize(
    "options, said", [({"gres": "gpu:a100:2"}, "gres=gpu:a100:2"), ({"gpus-per-task": 2}, "gpus-per-task=2")]
)
def test_a_user_may_say_which_gpus(tmp_path, commands, options, said):
    flags, _ = script_of(tmp_path, commands, slurm={"options": options})
    assert said in flags
    assert not any(flag.startswith("gpus-per-node") for flag in flags)


def test_a_short_limit_has_a_short_warning(tmp_path, commands):
    flags, _ = script_of(tmp_path, commands, gpus=[], slurm={"hours": 0.05})
    assert {"time=3", "signal=TERM@45"} <= flags
    flags, _ = script_of(tmp_path, commands, gpus=[], slurm={"hours": 5, "options": {"signal": "TERM@600"}})
    assert {"time=300", "signal=TERM@600"} <= flags


def test_several_nodes_have_the_worker_beside_their_launchers(tmp_path, commands):
    pipelines = {"DPO": {"processes": 8, "nodes": 2}}
    flags, lines = script_of(tmp_path, commands, slurm={"cpus": 2}, pipelines=pipelines)
    assert {"nodes=2", "gpus-per-node=4", "cpus-per-task=8", "ntasks-per-node=1"} <= flags
    assert "python -m 'x y'" in lines
    assert not any(line.startswith("srun") for line in lines)


def test_options_that_the_engine_relies_on_are_refused(tmp_path, commands):
    with pytest.raises(UsageError, match="kill-on-invalid-dep is set by cdpo"):
        backend(tmp_path, slurm={"options": {"kill-on-invalid-dep": "yes"}})


def test_what_is_missing_is_said_with_how_to_get_it(tmp_path, commands, monkeypatch):
    (tmp_path / "bin" / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UsageError, match=r"sbatch not found; .*slurm-client"):
        backend(tmp_path)
    commands("sbatch")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'cdpo\[slurm\]'"):
        backend(tmp_path)


def test_what_sbatch_says_ends_or_waits(tmp_path, commands):
    refusal = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: Invalid x\n"
    commands("sbatch", error=refusal, code=1)
    with pytest.raises(UsageError, match=r"DPO/tiny_s0-abababababab: .*\(invalid partition specified: x; Batch job"):
        backend(tmp_path).submit(STEP, ["true"], [])
    commands("sbatch", error="sbatch: error: Invalid generic resource (gres) specification\n", code=1)
    with pytest.raises(UsageError, match=r"write `gpus: \[\]`"):
        backend(tmp_path).submit(STEP, ["true"], [])
    # it may have been queued all the same: the next execute looks
    commands("sbatch", error="sbatch: error: Batch job submission failed: Socket timed out on send/recv\n", code=1)
    with pytest.raises(Unreachable, match="Socket timed out"):
        backend(tmp_path).submit(STEP, ["true"], [])
    commands("sbatch", error="sbatch: error: Unable to contact slurm controller (connect failure)\n", code=1)
    commands("scontrol", "Slurmctld(primary) at x is DOWN\n", code=1)
    with pytest.raises(Unreachable, match="connect failure"):
        backend(tmp_path).submit(STEP, ["true"], [])


def test_many_jobs_are_cancelled_a_few_hundred_at_a_time(tmp_path, commands):
    (tmp_path / "bin" / "scancel").write_text(f"#!/bin/sh\necho $# >> {tmp_path}/counts\n")
    os.chmod(tmp_path / "bin" / "scancel", 0o755)
    backend(tmp_path).cancel([str(number) for number in range(1001)])
    assert (tmp_path / "counts").read_text().split() == ["500", "500", "1"]
