"""A pipeline for tests of the engine: imports nothing heavy, does what its parameters say, and tells a diary.

Every line of the diary is one append of `<what> <name> <pid>`; so two makers of one step at once would be seen.
"""

import os
import signal
import subprocess
import sys
import time

from cdpo.errors import StepError


def tell(step, what):
    descriptor = os.open(step.params["diary"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{what} {step.name} {os.getpid()}\n".encode())
    os.close(descriptor)


def leave(step, how):
    """Start a process that nobody waits for: a `child`, a `daemon` in a session of its own, one that `escapes`.

    A `program` is a daemon too, and holds none of the worker's descriptors.
    """
    if how == "program":
        subprocess.Popen(["sleep", "120"], start_new_session=True)
        return
    if os.fork() != 0:
        return
    if how != "child":
        os.setsid()
    if how == "escapes":
        tell(step, "escaped")
        os.execve("/bin/sleep", ["sleep", "60"], {})
    signal.signal(signal.SIGTERM, lambda number, frame: tell(step, "told"))
    for _ in range(120):
        time.sleep(1)
    os._exit(0)


def run(step):
    params = step.params
    tell(step, "begin")
    print("hello from", step.name, flush=True)
    if params.get("raise"):
        raise ValueError(params["raise"])
    if params.get("refuse"):
        raise StepError(params["refuse"])
    if params.get("leave"):
        leave(step, params["leave"])
        if params.get("gate") is None:
            raise ValueError("left a child behind")
    if params.get("exit"):
        print("the last words", file=sys.stderr, flush=True)
        os._exit(params["exit"])
    seconds = params.get("seconds", 0.0)
    if params.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if params.get("gate"):
        while not os.path.exists(params["gate"]):
            time.sleep(0.01)
    if params.get("late"):
        raise ValueError(params["late"])
    for part in range(4):
        step.progress(part, 4, loss=1.0 / (part + 1))
        time.sleep(seconds / 4)
    read = {role: (step.input(role) / "value.txt").read_text() for role in step.inputs if role.startswith("parent")}
    for part in step.input_files("earlier") if step.has("earlier") else ():
        tell(step, "heard" if part.parent.exists() else "missed")
    if step.has("shards"):
        read |= {str(part): (part / "value.txt").read_text() for part in step.input_files("shards")}
    if step.rank == 0:
        (step.out / "value.txt").write_text("".join(read.values()) + step.name + "\n")
        (step.out / "model.safetensors").write_bytes(b"w" * params.get("size", 1000))
        step.log_metrics(1, {"loss": 0.5})
    step.progress(4, 4)
    if params.get("note"):
        step.note(params["note"])
    tell(step, "end")
    return {"length": len(read), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")} | (
        {"listed": sorted(os.listdir(step.input(params["list"])))} if "list" in params else {}
    )
