"""A real SLURM on 127.0.0.1, in a folder: munged with a key of its own, slurmctld, and a slurmd for each node.

All nodes are this machine. The daemons stay in the foreground, as children of whoever started them, and are stopped by
pid. There is no accounting, as on many small clusters. Needs root, because slurmd starts jobs; `make system-deps`
installs the packages. Two partitions share the nodes: a job of `high` preempts those of `low`.
"""

import os
import shutil
import signal
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
#: Debian's daemons are not on every user's PATH
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
#: of each node: two jobs of one core run at once, however many cores there are, for nothing binds them
CPUS = 2

CONFIGURATION = """
ClusterName=cdpo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
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
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
MinJobAge=300
KillWait=10
InactiveLimit=0
BatchStartTimeout=10
{nodes}
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
    def __init__(self, folder, nodes=1):
        self.folder = folder
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.configuration = folder / "slurm.conf"
        self._daemons = {}
        (folder / "state").mkdir(parents=True)
        # munged refuses a folder that others may write to
        folder.chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} CPUs={CPUS} RealMemory=2000"
            for name in self.nodes
        ]
        text = CONFIGURATION.format(host=host, controller=_free_port(), folder=folder, nodes="\n".join(nodes))
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
        for name in self.nodes:
            self._daemon("slurmd", "-D", "-N", name, "-f", str(self.configuration), called=f"slurmd-{name}")
        idle = ["idle"] * len(self.nodes)
        self._until("slurmd-node1", lambda: self.ask("sinfo", "-hN", "-plow", "-o%T").split() == idle)

    def start_controller(self):
        self._daemon("slurmctld", "-D", "-i", "-f", str(self.configuration))
        self._until("slurmctld", lambda: "is UP" in self.ask("scontrol", "ping"))

    def stop_controller(self):
        self._end(self._daemons.pop("slurmctld"))

    def stop(self):
        if "slurmctld" in self._daemons:
            self.clear()
        while self._daemons:
            self._end(self._daemons.popitem()[1])

    def ask(self, *words, check=False):
        """What a command of SLURM prints."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
        return done.stdout

    def jobs(self):
        """Ids and states of the jobs that wait or run."""
        return dict(line.split() for line in self.ask("squeue", "--noheader", "-o", "%i %T").splitlines())

    def named(self):
        """Ids and names of the jobs that wait or run."""
        return dict(line.split("|") for line in self.ask("squeue", "--noheader", "-o", "%i|%j").splitlines())

    def clear(self, seconds=20):
        """End every job, and wait until none is left."""
        limit = time.monotonic() + seconds
        while self.jobs() and time.monotonic() < limit:
            self.ask("scancel", *self.jobs())
            self.ask("scancel", "--full", "--signal=KILL", *self.jobs())
            time.sleep(0.2)

    def _daemon(self, program, *words, called=None):
        name = called or program
        with open(self.folder / f"{name}.out", "ab") as log:
            path = shutil.which(program, path=PATH)
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
