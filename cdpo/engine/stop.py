"""`cdpo stop`: ends what runs on a store; executions first, so that they start nothing new, then workers left alone."""

import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from cdpo.engine import supervisors
from cdpo.engine.process import describe, is_alive, send
from cdpo.engine.trees import Tree, leftovers, store_mark
from cdpo.engine.watch import proc
from cdpo.errors import CdpoError
from cdpo.store import Store
from cdpo.store.services import rooms

#: seconds that an execution, or a worker, has to end after SIGTERM: a large checkpoint is written in that time
GRACE = 120.0
#: and a service to end its server and remove what it made for it
SERVICES_GRACE = 10.0
PAUSE = 0.05


def stop(store: Store, grace: float = GRACE) -> list[str]:
    """End the executions and the workers of `store` on this machine; returns the keys of the steps that ran.

    Both are told by SIGTERM and killed if they live on after `grace` seconds each, and with the workers all that they
    started; services end with them. What they did remains: the steps are begun again by the next execute. Only
    processes that the store knows by pid and start time, or that carry its mark, are signalled. Raises CdpoError where
    some will not go.
    """
    if not store.root.exists():
        return []
    ran = [key for key in store.working() if store.is_locked(key)]
    executions = supervisors.living(store)
    for who in executions:
        _send(who, signal.SIGTERM)
    if not _wait(lambda: not any(is_alive(who) for who in executions), grace):
        for who in executions:
            _send(who, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGKILL):
        told: set[int] = set()

        def gone(number: int = number, told: set[int] = told) -> bool:
            return not _tell_workers(store, number, told)

        if _wait(gone, grace):
            break
    end_services(store, SERVICES_GRACE)
    everything = Tree(store_mark(store))
    if not _wait(lambda: not everything.kill(), grace):
        names = ", ".join(describe(who["pid"]) for who in everything.kill())
        raise CdpoError(f"{store.root}: killed and not gone after {grace:.0f} s: {names}; see `ps -o stat,wchan,cmd`")
    return ran


def end_services(store: Store, grace: float) -> bool:
    """Have the keepers of all services of `store` on this machine end them; whether they did in so many seconds."""
    told = []
    for room in rooms(store):
        if not room.is_kept():
            continue
        said = room.state()
        # on a store that several machines see, each has services of its own
        if said is not None and said["host"] == socket.gethostname():
            _send(said["keeper"], signal.SIGTERM)
            told.append(room)
    return _wait(lambda: not any(room.is_kept() for room in told), grace)


def _tell_workers(store: Store, number: int, told: set[int]) -> bool:
    """Signal, once, each worker that holds a lock; whether there is any. One that has just begun may be unknown yet.

    What an ended worker left running is killed: it may hold the lock.
    """
    for mark in leftovers(store):
        Tree(mark).kill()
    held = [key for key in store.working() if store.is_locked(key)]
    for key in held:
        who = proc(store.work(key))
        if who is not None and who["pid"] not in told:
            told.add(who["pid"])
            _send(who, number)
    return bool(held)


def _send(who: Mapping[str, Any], number: int) -> None:
    try:
        send(who, number)
    except PermissionError:
        raise CdpoError(f"{describe(who['pid'])} is another user's; ask them to stop it") from None


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(PAUSE)
    return True
