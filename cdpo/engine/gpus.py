"""GPUs of this machine, and who has them: one lock file per GPU UUID, in one place for all users and all stores.

A step's worker inherits the descriptors of its leases, so a GPU is taken as long as a process of the step lives; two
`cdpo execute` share a machine without a daemon and without knowing of each other.
"""

import fcntl
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdpo.errors import UsageError

#: not below $TMPDIR, which batch systems and users set each to their own
LEASES = Path("/tmp/cdpo-gpu-leases")
#: names another place for the leases
LEASES_VARIABLE = "CDPO_GPU_LEASES"


@dataclass(frozen=True)
class Gpu:
    #: as nvidia-smi counts, by PCI bus
    index: int
    uuid: str
    #: as the driver calls the card: "NVIDIA A100-SXM4-80GB"
    name: str


def list_gpus() -> list[Gpu]:
    """Every GPU that `nvidia-smi -L` lists; none where there is no nvidia-smi. Raises UsageError where it fails."""
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    if found.returncode != 0:
        said = (found.stdout + found.stderr).strip()
        raise UsageError(f"`nvidia-smi -L` failed ({said}); repair the driver, or write `gpus: []` in devices.yaml")
    return parse_list(found.stdout)


def parse_list(text: str) -> list[Gpu]:
    """The GPUs of an `nvidia-smi -L` listing; a card that is cut into MIG devices counts as those."""
    gpus: list[Gpu] = []
    whole: Gpu | None = None
    for line in text.splitlines():
        card = re.match(r"GPU (\d+): (.+) \(UUID: (GPU-[^)]+)\)", line)
        part = re.match(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)", line)
        if card:
            whole = Gpu(int(card[1]), card[3], card[2])
            gpus.append(whole)
        elif part and whole:
            if gpus[-1] is whole:
                gpus.pop()
            gpus.append(Gpu(whole.index, part[2], f"{whole.name} MIG {part[1]}"))
    return gpus


def choose(gpus: Sequence[Gpu], wanted: str | Sequence[int | str], inherited: str | None) -> list[Gpu]:
    """The pool: GPUs that devices.yaml wants ("auto" or a list of indices and UUIDs) and CUDA_VISIBLE_DEVICES allows.

    As in CUDA, an inherited list ends before its first entry that names no GPU. Raises UsageError for an entry of
    devices.yaml that names none.
    """
    pool = list(gpus)
    if inherited is not None:
        pool = []
        for entry in inherited.split(","):
            found = _named(gpus, entry.strip())
            if found is None:
                break
            pool.append(found)
    if isinstance(wanted, str):
        return pool
    chosen = []
    for each in wanted:
        found = _named(gpus, str(each))
        if found is None:
            have = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in gpus) or "none"
            raise UsageError(f"devices.yaml: gpus: there is no GPU {each!r} here; this machine has {have}")
        if found in pool:
            chosen.append(found)
    return chosen


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    if entry.isdigit():
        return next((gpu for gpu in gpus if gpu.index == int(entry)), None)
    matching = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
    return matching[0] if len(matching) == 1 else None


def lease(gpu: Gpu) -> int | None:
    """A descriptor that holds `gpu` as long as it is open anywhere, or None where another process has it."""
    descriptor = _open_shared(lease_folder() / f"{gpu.uuid.replace('/', '_')}.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def lease_folder() -> Path:
    """The place of the lock files, made writable for every user."""
    folder = Path(os.environ.get(LEASES_VARIABLE, LEASES))
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o1777)
    return folder


def _open_shared(path: Path) -> int:
    # Opening another user's file with O_CREAT is refused in a sticky folder (fs.protected_regular), so: first without.
    while True:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            pass
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            continue
        os.fchmod(descriptor, 0o666)
        return descriptor
