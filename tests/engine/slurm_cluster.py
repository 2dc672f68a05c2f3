"""A real SLURM of one node on 127.0.0.1, in a folder: munged with a key of its own, slurmctld and slurmd.

The daemons stay in the foreground of processes that belong to whoever started them, so that they are stopped by pid.
There is no accounting, as on many small clusters: a job that ended is forgotten after MinJobAge seconds. Needs root,
because slurmd starts jobs; `sh tests/engine/system_deps.sh` installs the packages.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
#: Debian's daemons are not on every user's PATH
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
#: enough that two jobs of one core run at once wherever this runs: nothing binds them to real cores
CPUS = 2

CONFIGURATION = """
ClusterName=cdpo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,requeue_delay=0
MinJobAge={min_job_age}
KillWait=10
InactiveLimit=0
BatchStartTimeout=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=10
"""


def missing():
    """Why no SLURM can be started here, or None."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed; `make system-deps` installs them on Debian"
    if os.geteuid() != 0:
        return "slurmd starts jobs as root only"
    return None


class Cluster:
    def __init__(self, folder, min_job_age=300):
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self._daemons = {}
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        # munged refuses a folder that others may write to, or a socket that they cannot reach
        folder.chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        text = CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0],
            controller=_free_port(),
            node=_free_port(),
            folder=folder,
            cpus=CPUS,
            min_job_age=min_job_age,
        )
        self.configuration.write_text(text)

    @property
    def environment(self):
        """With this, SLURM's commands speak to this cluster."""
        return {"SLURM_CONF": str(self.configuration), "PATH": PATH}

    def start(self):
        folder = self.folder
        munge = ["--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key"]
        munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/seed"]
        self._daemon("munged", *munge)
        self._until("munged", lambda: (folder / "munge.socket").exists())
        self.start_controller()
        self._daemon("slurmd", "-D", "-f", str(self.configuration))
        self._until("slurmd", lambda: "idle" in self.ask("sinfo", "--noheader", "-o", "%T"))

    def start_controller(self):
        self._daemon("slurmctld", "-D", "-i", "-f", str(self.configuration))
        self._until("slurmctld", lambda: "is UP" in self.ask("scontrol", "ping"))

    def stop_controller(self):
        self._end(self._daemons.pop("slurmctld"))

    def stop(self):
        if "slurmctld" in self._daemons:
            self.ask("scancel", "--full", "--signal=KILL", "--user=root")
            self._settle()
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self._daemons:
                self._end(self._daemons.pop(name))

    def ask(self, *words, check=False):
        """What a command of SLURM prints."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
        return done.stdout

    def jobs(self):
        """Ids and states of the jobs that wait or run."""
        return dict(line.split() for line in self.ask("squeue", "--noheader", "-o", "%i %T").splitlines())

    def _daemon(self, name, *words):
        with open(self.folder / f"{name}.out", "ab") as log:
            path = shutil.which(name, path=PATH)
            environment = {**os.environ, **self.environment}
            self._daemons[name] = subprocess.Popen(
                [path, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def _until(self, name, condition, seconds=30):
        limit = time.monotonic() + seconds
        while not condition():
            if self._daemons[name].poll() is not None or time.monotonic() > limit:
                said = "".join(
                    path.read_text()[-3000:] for path in sorted(self.folder.glob(f"{name}.*")) if path.suffix != ".pid"
                )
                self.stop()
                raise RuntimeError(f"{name} did not start:\n{said}")
            time.sleep(0.1)

    def _settle(self, seconds=15):
        """Wait until no job is left, so that slurmd leaves no process behind."""
        limit = time.monotonic() + seconds
        while self.jobs() and time.monotonic() < limit:
            self.ask("scancel", "--full", *self.jobs())
            time.sleep(0.2)

    def _end(self, process):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
