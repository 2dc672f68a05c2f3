"""What made a result, for its manifest: source code, versions, machine. Recorded, never hashed into a key."""

import functools
import hashlib
import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


@functools.cache
def source_digest() -> str:
    """sha256 over every Python file of cdpo and its pipelines; the same for a checkout and for an installed wheel."""
    import cdpo
    import cdpo.pipelines

    room = Path(next(iter(cdpo.__path__)))
    inside = room / "pipelines"
    files = {f"cdpo/{path.relative_to(room).as_posix()}": path for path in room.rglob("*.py")}
    files = {name: path for name, path in files.items() if inside not in path.parents}
    for folder in cdpo.pipelines.__path__:
        files.update({f"pipelines/{path.name}": path for path in Path(folder).glob("*.py")})
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name].read_bytes()).digest())
    return digest.hexdigest()


def versions() -> dict[str, str | None]:
    """Versions of Python, cdpo and what the pipelines compute with, read without importing any of it."""
    import cdpo

    found: dict[str, str | None] = {"python": platform.python_version(), "cdpo": cdpo.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def host() -> dict[str, Any]:
    """Facts about this machine: name, system, kind of processor and how many there are."""
    return {
        "name": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
