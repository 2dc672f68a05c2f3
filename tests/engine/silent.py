"""A pipeline for tests of the watchdog: it writes a line now and then, and from some moment on nothing more."""

import sys
import time

from trivial import tell


def run(step):
    tell(step, "begin")
    for part in range(step.params.get("lines", 0)):
        print("still here", part, file=sys.stderr, flush=True)
        time.sleep(step.params["pause"])
    if step.rank == step.params.get("silent_rank", -1):
        wait_for_ever()
    if step.rank == 0:
        (step.out / "value.txt").write_text("made\n")
    tell(step, "end")
    return {}


def wait_for_ever():
    time.sleep(600)
