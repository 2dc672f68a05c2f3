"""A worker that begins again, in place: the same step, lock, GPUs and log, fewer rows at once, and all memory free.

Nothing that ran out of memory can be trusted to give it all back, so the process becomes a fresh one (its pid stays).
The step then goes on from its last checkpoint, or its last response.
"""

import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from cdpo.errors import OutOfMemory
from cdpo.files import read_json, write_json
from cdpo.step import Step


def may_fit(work: Path, error: OutOfMemory) -> bool:
    """Whether fewer rows at once are a way out that was not tried yet."""
    return error.rows is not None and error.rows > 1 and not Step.read(work).device.halved


def begin(work: Path, error: OutOfMemory, environment: Mapping[str, str], held: Iterable[int]) -> NoReturn:
    """Begin the step of `work` again with half as many rows; `held` are the descriptors of its lock and leases."""
    assert error.rows is not None
    # from here on a signal to stop need not be answered: nothing is lost
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    described = read_json(work / "step.json")
    described["device"]["halved"] = True
    described["out_of_memory"] = {"rows": error.rows, "said": error.said}
    write_json(work / "step.json", described, durable=False)
    Step.read(work).note(f"{error}: it begins again with {error.rows // 2}, from its last checkpoint")
    sys.stdout.flush()
    for name in os.listdir("/proc/self/fd"):
        # what a driver or library left open would hold its memory
        if int(name) > 2 and os.path.exists(f"/proc/self/fd/{name}"):
            os.set_inheritable(int(name), int(name) in held)
    os.execve(sys.executable, [sys.executable, "-m", "cdpo.engine.worker", str(work)], dict(environment))
