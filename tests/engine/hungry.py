"""A pipeline for tests of running out of memory: it fits with so many rows at once, or never."""

import os
import time

from trivial import tell

from cdpo.memory import at_once


def run(step):
    tell(step, "begin")
    if step.device.processes > 1:
        import torch.distributed

        torch.distributed.barrier()
    rows = step.device.fewer(step.params["rows"])
    step.log_metrics(1, {"rows": rows})
    with at_once(rows if step.params.get("splits", True) else None):
        if rows > step.params["fit"] and step.rank == step.params.get("rank", 0):
            bytearray(1 << 60)
        while step.params.get("gate") and not os.path.exists(step.params["gate"]):
            time.sleep(0.01)
        if step.params.get("said"):
            raise RuntimeError(step.params["said"])
    if step.rank == 0:
        (step.out / "value.txt").write_text(f"{rows}\n")
    tell(step, "end")
    return {"rows": rows, "pid": os.getpid()}
