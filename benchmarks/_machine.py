"""What every figure comes with: the machine, the date, the command."""

import os
import platform
import shlex
import sys
from datetime import date
from pathlib import Path


def machine() -> str:
    """`2 cores of AMD EPYC, 24 GiB, Python 3.11.7`"""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Python {platform.python_version()}"


def print_machine() -> None:
    command = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
    print(f"{machine()}, {date.today().isoformat()}\n{command}")
