"""How long what is being executed will still take: one figure for all of it, and nothing where nothing is known."""

import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from cdpo.engine.process import is_alive
from cdpo.engine.show.eta import Estimate
from cdpo.engine.show.words import duration
from cdpo.errors import DamagedFile
from cdpo.files import read_json
from cdpo.plan.graph import PlannedStep
from cdpo.report.board import OVER, Board
from cdpo.store import Store

#: a step that has done less than this share of its work tells nothing yet of how long the rest takes: it has spent most
#: of its time on its start. Less is enough where nobody has timed its pipeline
EARLY, UNTIMED_EARLY = 0.2, 0.03
#: bytes at the end of the store's history in which the beginning of the last execution is looked for
HISTORY = 1 << 20


@dataclass(frozen=True)
class Left:
    """What is left of the tasks files that are being executed."""

    #: steps that run or wait; those that failed, and what needs them, are not made by this execution
    steps: int
    #: None where nothing is known
    seconds: float | None
    #: False where it takes longer than that, as some step cannot be told yet
    complete: bool
    #: pipelines that wait and that nobody has timed
    untimed: list[str]

    def text(self) -> str:
        """`about 3m 05s left for 12 steps`."""
        of = f"{self.steps} step{'' if self.steps == 1 else 's'}"
        if self.seconds is None:
            return f"time left for {of}: not known yet"
        return f"{'about' if self.complete else 'at least'} {duration(self.seconds)} left for {of}"


def time_left(store: Store, board: Board, slots: int | None) -> Left | None:
    """None where nothing runs. `slots`: see `slots_of`."""
    todo = _todo(board)
    running = [key for key in todo if board.steps[key]["state"] == "running"]
    if not running:
        return None
    estimate = Estimate(max(slots or 0, len(board.at_work()), 1))
    past = _past(store, board, {board.planned[key].pipeline for key in todo})
    for pipeline, seconds in past.items():
        estimate.timed(pipeline, seconds)
    typical = {pipeline: median(seconds) for pipeline, seconds in past.items() if seconds}
    now = time.time()
    #: key -> seconds until the step is made, if it had a place as soon as it can start
    chain: dict[str, float] = {}
    complete = slots is not None
    for key, step in todo.items():
        own = typical.get(step.pipeline)
        if key in running:
            passed, share = float(board.steps[key].get("seconds", 0.0)), board.share(key) or 0.0
            estimate.started(key, step.pipeline, now - passed)
            told = share >= (UNTIMED_EARLY if own is None else EARLY)
            if told:
                estimate.progressed(key, share)
                own = passed / share
            # one that says nothing and takes longer than usual may take much longer
            complete &= told or (own is not None and passed < own)
            own = None if own is None else max(0.0, own - passed)
        else:
            estimate.waits(step.pipeline)
        chain[key] = max((chain.get(parent, 0.0) for parent in step.parents), default=0.0) + (own or 0.0)
    found = estimate.left()
    unknown = [step.pipeline for key, step in todo.items() if key not in running and step.pipeline not in typical]
    untimed = sorted(set(unknown))
    # a figure for the smaller part of what is left would be taken for one of all
    if found is None or len(unknown) > len(todo) / 2:
        return Left(len(todo), None, False, untimed)
    left, complete = max(found["seconds"], *chain.values()), bool(found["complete"]) and complete
    # no time at all is what is left where nothing could be told
    return Left(len(todo), left if complete or left >= 1 else None, complete, untimed)


def slots_of(store: Store) -> int | None:
    """How many steps the last execution makes at once, as it said; None where a batch system decides that."""
    try:
        with open(store.events, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - HISTORY))
            lines = stream.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        if b'"event": "plan"' in line and line.startswith(b"{"):
            try:
                slots = json.loads(line).get("slots")
            except ValueError:
                continue
            return slots if isinstance(slots, int) else None
    return None


def executions(store: Store) -> int:
    """How many executions live on this store and machine. Those of cdpo/engine/supervisors.py, and nothing is removed:
    who only looks may not be allowed to."""
    try:
        there = os.stat(store.root)
    except FileNotFoundError:
        return 0
    found = 0
    for path in (store.root / "executing").glob("[!.]*.json"):
        try:
            who: Mapping[str, Any] = read_json(path)
        except (OSError, DamagedFile):
            continue
        here = who.get("host") == socket.gethostname() and who.get("folder") == [there.st_dev, there.st_ino]
        found += here and is_alive(who)
    return found


def _todo(board: Board) -> dict[str, PlannedStep]:
    """What an execution still makes of the plans of which something runs, parents first: also weights that were evicted
    and that such a step reads."""
    tasks = {row.tasks for row in board.rows if any(board.steps[key]["state"] == "running" for key in row.steps)}
    wanted = {key for row in board.rows if row.tasks in tasks for key in row.steps}
    found: list[str] = []
    read: set[str] = set()
    for key in reversed(board.planned):
        state = board.steps[key]["state"]
        again = key in read and state == "evicted"
        if again or (key in wanted and state not in OVER and state not in ("failed", "blocked", "missing")):
            found.append(key)
            read.update(board.planned[key].parents)
    return {key: board.planned[key] for key in reversed(found)}


def _past(store: Store, board: Board, wanted: set[str]) -> dict[str, list[float]]:
    """Seconds that finished steps of these pipelines took: the board's own, and where it has none the store's."""
    found: dict[str, list[float]] = {pipeline: [] for pipeline in wanted}
    for said in board.steps.values():
        if said["state"] in OVER and said["pipeline"] in wanted:
            found[said["pipeline"]].append(said["seconds"])
    return {pipeline: seconds or store.past_seconds(pipeline) for pipeline, seconds in found.items()}
