"""What made a result, for its manifest: source code, versions, machine. Recorded, never hashed into a key.

Every worker asks, and most of a short step's time is its start; so nothing is imported for it that is not there anyway.
"""

import functools
import hashlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


@functools.cache
def source_digest() -> str:
    """sha256 over every Python file of cdpo and its pipelines; the same for a checkout and for an installed wheel."""
    import cdpo

    room = next(iter(cdpo.__path__))
    files = _sources(room, "cdpo")
    # a wheel has the pipelines inside cdpo/, a checkout beside it
    files = {name: path for name, path in files.items() if not name.startswith("cdpo/pipelines/")}
    spec = find_spec("cdpo.pipelines")
    for folder in (spec and spec.submodule_search_locations) or ():
        files.update(_sources(folder, "pipelines"))
    digest = hashlib.sha256()
    for name in sorted(files):
        with open(files[name], "rb") as stream:
            content = stream.read()
        digest.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    return digest.hexdigest()


def _sources(room: str, called: str) -> dict[str, str]:
    found = {}
    for folder, _, names in os.walk(room):
        below = called + folder[len(room) :].replace(os.sep, "/")
        found.update({f"{below}/{name}": os.path.join(folder, name) for name in names if name.endswith(".py")})
    return found


def versions() -> dict[str, str | None]:
    """Versions of Python, cdpo and what the pipelines compute with; None for what is not installed.

    Read from the names of the `*.dist-info` folders on sys.path, where importlib.metadata looks too.
    """
    import cdpo

    found: dict[str, str | None] = {"python": sys.version.split()[0], "cdpo": cdpo.__version__}
    found.update(dict.fromkeys(PACKAGES))
    for folder in reversed(sys.path):
        if os.path.isdir(folder):
            for name in os.listdir(folder):
                package, _, version = name.removesuffix(".dist-info").partition("-")
                if name.endswith(".dist-info") and package.lower() in PACKAGES:
                    found[package.lower()] = version
    return found


def host() -> dict[str, Any]:
    """Facts about this machine: name, system, kind of processor and how many there are."""
    system = os.uname()
    return {
        "name": system.nodename,
        "system": f"{system.sysname} {system.release} {system.machine}",
        "cpu": _cpu() or system.machine,
        "cpus": os.cpu_count(),
    }


def _cpu() -> str | None:
    if not Path("/proc/cpuinfo").exists():
        return None
    with open("/proc/cpuinfo", encoding="utf-8") as stream:
        for line in stream:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return None
