"""What devices.yaml says of a batch system: `slurm:` beside `engine: slurm`, `ray:` beside `engine: ray`."""

from pydantic import Field

from cdpo.config.params import Count, Params, Positive


class SlurmParams(Params):
    """How steps are submitted to SLURM; each step is one job."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    hours: Positive | None = None
    """Time limit of a job. One that reaches it checkpoints, is queued again and goes on. Default: the partition's."""
    cpus: Count = 1
    """Cores for each process of a step; its torch threads."""
    memory_gib: Positive | None = None
    """Memory of a job on each of its nodes."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell before each worker starts: `module load cuda`, ..."""
    options: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further options of sbatch by their long names: `{constraint: a100, exclusive: true}`; `gres` and its like stand
    in place of a GPU for each process."""


class RayParams(Params):
    """Which Ray cluster runs the steps; one that `ray start` started, so that it outlives whoever submits."""

    address: str = "auto"
    """`auto`: the cluster of this machine; else HOST:PORT of its head."""
    cpus: Count = 1
    """Cores for each process of a step; its torch threads."""
