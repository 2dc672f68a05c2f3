"""What an execution shows: one stream of events, three fronts (rich on a terminal, plain lines, JSON lines).

Every event is a mapping with "event" and "time", and where it concerns a step "key", "pipeline", "name":

    plan           total, cached, run, slots (None: as many as the batch system gives)
    step_queued    job, found: the batch system's id, and whether an earlier execute submitted it
    step_started   slot, place, attempt, pid, log
    step_adopted   slot, place, pid: a worker of an earlier or another execute makes this step
    step_progress  done, total, unit, values, eta
    step_done      seconds, path, finished, run, eta
    step_failed    reason, log, tail
    step_blocked   by
    note           text
    finished       done, cached, failed, blocked, interrupted, seconds, exit_code

`eta` is {"seconds", "complete"} for all that is left, or None; not `complete` where some
pipeline has not been timed yet.
"""

import json
import sys
from collections.abc import Mapping
from typing import IO, Any, Literal, Protocol

from cdpo.engine.show.words import duration, line

Event = Mapping[str, Any]


class Display(Protocol):
    def show(self, event: Event) -> None:
        """Take note of one event."""

    def tick(self) -> None:
        """Called a few times a second while steps run."""

    def close(self) -> None:
        """Nothing follows."""


class Silent:
    """Shows nothing."""

    def show(self, event: Event) -> None:
        pass

    def tick(self) -> None:
        pass

    def close(self) -> None:
        pass


class Json(Silent):
    """One event a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def show(self, event: Event) -> None:
        print(json.dumps(event, ensure_ascii=False), file=self._stream, flush=True)


class Plain(Silent):
    """A line for whatever happens; progress only where a tenth more of a step is done."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._tenths: dict[str, int] = {}

    def show(self, event: Event) -> None:
        if event["event"] == "step_progress":
            tenth = 10 * event["done"] // max(1, event["total"])
            if tenth <= self._tenths.get(event["key"], 0) or tenth == 10:
                return
            self._tenths[event["key"]] = tenth
        text = line(event)
        if text is not None:
            print(text, file=self._stream, flush=True)


def make_display(kind: Literal["auto", "rich", "plain", "json"] = "auto", stream: IO[str] | None = None) -> Display:
    """The front called `kind`; "auto" is rich where `stream` (default stdout) is a terminal and plain elsewhere."""
    stream = stream or sys.stdout
    if kind == "auto":
        kind = "rich" if stream.isatty() else "plain"
    if kind == "json":
        return Json(stream)
    if kind == "plain":
        return Plain(stream)
    from cdpo.engine.show.rich_display import Rich

    return Rich(stream)


__all__ = ["Display", "Event", "Json", "Plain", "Silent", "duration", "make_display"]
