"""A step for the torture test: a chain of units with checkpoints, and a diary of who computed what on which GPU.

A line of the diary is one append, so the file's order is the order in which things happened, whoever wrote.
"""

import hashlib
import json
import os
import time

from cdpo.files import append_json, read_json, write_json

#: units between two checkpoints: what a kill may cost
INTERVAL = 4


def chain(name, rank, parents, units):
    """What `units` of the step's work come to, as they are computed one by one."""
    value = hashlib.sha256(json.dumps([name, rank, parents]).encode()).hexdigest()
    yield value
    for unit in range(units):
        value = hashlib.sha256(f"{value} {unit}".encode()).hexdigest()
        yield value


def weights(text):
    """Bytes that go with a step's value: enough of them to be caught half written."""
    return bytes.fromhex(text[:64]) * 10000


def run(step):
    units = step.params["units"]
    gpus = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
    life = f"{os.getpid()}-{time.monotonic_ns()}"

    def tell(what, **more):
        line = {"step": step.name, "rank": step.rank, "life": life, "gpu": gpus[step.rank], "what": what, **more}
        append_json(step.params["diary"], {**line, "time": time.time()})

    tell("begin")
    roles = sorted(role for role in step.inputs if role.startswith("parent"))
    parents = [(step.input(role) / "value.txt").read_text() for role in roles]
    saved = step.checkpoints / f"rank-{step.rank}.json"
    unit, value = read_json(saved) if saved.exists() else (0, next(chain(step.name, step.rank, parents, 0)))
    while unit < units:
        time.sleep(step.params["unit_seconds"])
        value = hashlib.sha256(f"{value} {unit}".encode()).hexdigest()
        tell("unit", unit=unit)
        unit += 1
        if unit % INTERVAL == 0 or unit == units:
            write_json(saved, [unit, value])
        step.progress(unit, units)
    if step.rank == 0:
        values = [value, *(_value_of(step, rank, units) for rank in range(1, step.device.processes))]
        text = "\n".join([*values, ""])
        (step.out / "value.txt").write_text(text)
        (step.out / "model.safetensors").write_bytes(weights(text))
    tell("end")
    return {"units": unit}


def _value_of(step, rank, units):
    """What another rank came to, once it did."""
    saved = step.checkpoints / f"rank-{rank}.json"
    while not saved.exists() or read_json(saved)[0] < units:
        time.sleep(0.01)
    return read_json(saved)[1]
