"""`cdpo stop`: ends what runs on a store; executions first, so that they start nothing new, then workers left alone."""

import os
import signal
import time
from collections.abc import Callable

from cdpo.engine import supervisors
from cdpo.engine.process import is_alive, signal_group
from cdpo.engine.watch import proc
from cdpo.store import Store

#: seconds that an execution, or a worker, has to end after SIGTERM
GRACE = 20.0
PAUSE = 0.05


def stop(store: Store, grace: float = GRACE) -> list[str]:
    """End the executions and the workers of `store` on this machine; returns the keys of the steps that ran.

    Both are told by SIGTERM and killed if they live on after `grace` seconds each. What they did remains: the steps are
    begun again by the next execute.
    """
    ran = [key for key in store.working() if store.is_locked(key)]
    executions = supervisors.living(store)
    for who in executions:
        _signal(who["pid"], signal.SIGTERM)
    if not _wait(lambda: not any(is_alive(who) for who in executions), grace):
        for who in executions:
            if is_alive(who):
                _signal(who["pid"], signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()

        def gone(number: int = number, told: set[int] = told) -> bool:
            return not _tell_workers(store, number, told)

        if _wait(gone, grace):
            break
    return ran


def _tell_workers(store: Store, number: int, told: set[int]) -> bool:
    """Signal, once, each worker that holds a lock; whether there is any. One that has just begun may be unknown yet."""
    held = [key for key in store.working() if store.is_locked(key)]
    for key in held:
        who = proc(store.work(key))
        if who is not None and who["pid"] not in told and is_alive(who):
            told.add(who["pid"])
            signal_group(who["pid"], number)
    return bool(held)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(PAUSE)
    return True
