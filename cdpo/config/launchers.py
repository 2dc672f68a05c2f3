"""The launcher files of `configs/accelerate/`: DeepSpeed, FSDP and plain DDP, in accelerate's own format.

They say where weights, gradients and optimiser state lie, never what is computed: what the task decides is refused in
them. A name that a project's own folder does not hold is looked for among the files that cdpo ships.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cdpo.config.paths import PathError, find, looks_local
from cdpo.config.problems import ConfigError, Problem, suggest
from cdpo.config.tables import shipped_configs
from cdpo.config.validation import show
from cdpo.config.yaml_reader import Document, read_yaml

FOLDER = "accelerate"
#: the kinds of parallelism that cdpo trains with, by accelerate's names
KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "FSDP")
#: settings of DeepSpeed that follow from the task -> what decides them
DECIDED = {
    "gradient_accumulation_steps": "batch_size in the task and micro_batch in devices.yaml decide it",
    "gradient_clipping": "max_grad_norm in the task decides it",
    "deepspeed_config_file": "write here what of it the task does not decide",
    "deepspeed_hostfile": "SLURM says which nodes there are",
}
#: how accelerate starts DeepSpeed on several nodes: here the batch system does
MULTINODE_LAUNCHER = "standard"


@dataclass(frozen=True)
class Launcher:
    """What a launcher file asks for, which every process of a step must find itself in."""

    distributed_type: str
    #: DeepSpeed's: 1 shares out the optimiser state, 2 gradients too, 3 weights too
    zero_stage: int | None = None
    fsdp_version: int | None = None

    @property
    def cuts_weights(self) -> bool:
        """Whether no process holds the weights as a whole while it trains."""
        return self.zero_stage == 3 or self.fsdp_version is not None


def find_launcher(name: str, configs: Path) -> Path:
    """The file that `name` stands for: in `accelerate/` of the project, of cdpo, or a path. Raises PathError."""
    places = [configs / FOLDER, shipped_configs() / FOLDER]
    if looks_local(name):
        return find(name, configs)[0]
    for folder in places:
        for file in (folder / name, folder / f"{name}.yaml"):
            if file.is_file():
                return file.resolve()
    known = sorted({path.name for folder in places for path in folder.glob("*.yaml")})
    raise PathError(f"{configs / FOLDER} has no {name}{suggest(name, known)}")


@cache
def read_launcher(path: Path) -> Launcher:
    """Read a launcher file. Raises ConfigError with everything in it that does not serve."""
    document = read_yaml(path)
    value = document.value if isinstance(document.value, dict) else {}
    kind = value.get("distributed_type")
    problems = []
    if kind not in KINDS:
        problems.append(
            document.problem(("distributed_type",), f"should be one of {', '.join(KINDS)}, not {show(kind)}")
        )
    deepspeed, fsdp = (_settings(value, name) for name in ("deepspeed_config", "fsdp_config"))
    stage = deepspeed.get("zero_stage")
    version = fsdp.get("fsdp_version")
    if kind == "DEEPSPEED":
        problems += _deepspeed_problems(document, deepspeed)
        if value.get("mixed_precision", "no") != "no":
            problems.append(document.problem(("mixed_precision",), "take it out of here: dtype in the task decides it"))
    if kind == "FSDP" and version != 2:
        message = f"should be 2, not {show(version)}: the first version of FSDP is not supported"
        problems.append(document.problem(("fsdp_config", "fsdp_version"), message))
    if problems:
        raise ConfigError(problems)
    return Launcher(
        str(kind), zero_stage=stage if kind == "DEEPSPEED" else None, fsdp_version=version if kind == "FSDP" else None
    )


def _settings(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def _deepspeed_problems(document: Document, settings: dict[str, Any]) -> list[Problem]:
    here = "deepspeed_config"
    problems = [
        document.problem((here, name), f"take it out of here: {why}", at_key=True)
        for name, why in DECIDED.items()
        if settings.get(name, "auto") != "auto"
    ]
    stage = settings.get("zero_stage")
    if stage not in (1, 2, 3) or isinstance(stage, bool):
        problems.append(document.problem((here, "zero_stage"), f"should be 1, 2 or 3, not {show(stage)}"))
    launcher = settings.get("deepspeed_multinode_launcher", MULTINODE_LAUNCHER)
    if launcher != MULTINODE_LAUNCHER:
        message = f"should be {MULTINODE_LAUNCHER}, not {show(launcher)}: SLURM starts one launcher on each node"
        problems.append(document.problem((here, "deepspeed_multinode_launcher"), message))
    return problems
