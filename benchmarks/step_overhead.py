"""What a trivial step costs: CPU and memory of the execution that supervises it, CPU of its worker and of Python alone.

    python benchmarks/step_overhead.py [STEPS]

Two steps run at once. Each writes one file of a few bytes; the worker's figure holds its start, its locks, and
publishing.
"""

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _machine import print_machine

from cdpo.config.devices import Devices
from cdpo.engine.local.engine import LocalEngine
from cdpo.engine.show.display import Plain
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.store import Store

PIPELINE = 'def run(step):\n    (step.out / "value.txt").write_text("done")\n    return {}\n'


def cpu(who: int) -> float:
    """CPU seconds so far of this process, or of its children that have ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def main(steps: int) -> None:
    print_machine()
    before = cpu(resource.RUSAGE_CHILDREN)
    for _ in range(steps):
        subprocess.run([sys.executable, "-c", ""], check=True)
    bare = cpu(resource.RUSAGE_CHILDREN) - before
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(steps)]
    planned = {key: PlannedStep(key, "TRIVIAL", f"step{number}", 1, {}, {}, 0) for number, key in enumerate(keys)}
    plan = Plan("benchmark", "", {}, [], planned)
    with tempfile.TemporaryDirectory() as room, open(os.devnull, "w", encoding="utf-8") as nowhere:
        (Path(room) / "trivial.py").write_text(PIPELINE)
        modules = {"TRIVIAL": f"{room}/trivial.py"}
        engine = LocalEngine(Store(Path(room) / "store"), Devices(gpus=[], cpu_workers=2), Plain(nowhere), modules)
        mine, theirs, began = cpu(resource.RUSAGE_SELF), cpu(resource.RUSAGE_CHILDREN), time.perf_counter()
        assert engine.run(plan).exit_code == 0
        mine, theirs = cpu(resource.RUSAGE_SELF) - mine, cpu(resource.RUSAGE_CHILDREN) - theirs
        wall = time.perf_counter() - began
        again = cpu(resource.RUSAGE_SELF)
        assert len(engine.run(plan).cached) == steps
        again = cpu(resource.RUSAGE_SELF) - again
    for name, seconds in (
        ("supervisor CPU", mine),
        ("worker CPU", theirs),
        ("bare interpreter CPU", bare),
        ("wall", wall),
        ("supervisor CPU, all cached", again),
    ):
        print(f"{name:<28}{1000 * seconds / steps:8.2f} ms per step")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'supervisor memory, peak':<28}{peak:8.1f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
