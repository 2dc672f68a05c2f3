"""A pipeline that holds memory of a real GPU: `gib` of it, until the file `gate` is there; also in a daemon's hands."""

import os
import subprocess
import sys
import time

from trivial import tell

#: `python -c HOLD GIB`: takes GPU memory, says so, and keeps it
HOLD = """
import sys, time, torch
held = torch.ones(int(float(sys.argv[1]) * 2**30), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("holding", flush=True)
time.sleep(600)
"""


def hold(gib, **more):
    """Start a process that holds so much memory of the first visible GPU; returns it once it does."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(gib)], stdout=subprocess.PIPE, text=True, **more)
    assert process.stdout.readline() == "holding\n"
    return process


def run(step):
    import torch

    gib, gate = step.params["gib"], step.params.get("gate")
    if step.params.get("daemon"):
        hold(gib, start_new_session=True)
    held = torch.ones(int(gib * 2**30), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    tell(step, "begin")
    while gate and not os.path.exists(gate):
        time.sleep(0.05)
    (step.out / "value.txt").write_text(str(int(held[:8].sum())))
    tell(step, "end")
    return {}
