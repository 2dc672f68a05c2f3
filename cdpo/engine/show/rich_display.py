"""The front for a terminal: one row per place where a step runs, one bar and one ETA for the whole matrix."""

import time
from collections.abc import Mapping
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cdpo.engine.show.words import duration, eta, label, line, progress

STYLES = {"step_failed": "bold red", "step_blocked": "yellow", "note": "yellow", "step_adopted": "cyan"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the whole program; an execution goes on without its display."""
        raise BrokenPipeError


class Rich:
    """Failures, blocked steps and notes are printed above; what runs is redrawn below them."""

    def __init__(self, stream: IO[str]) -> None:
        self.console = _Console(file=stream, highlight=False)
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        #: key -> the step's start event, its latest progress, and when it began
        self._rows: dict[str, tuple[Mapping[str, Any], Mapping[str, Any] | None, float]] = {}
        self._finished = self._run = self._failed = 0
        self._eta: Mapping[str, Any] | None = None

    def show(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        self._eta = event.get("eta", self._eta)
        if kind == "plan":
            self._run = event["run"]
            self.console.print(Text(line(event) or ""))
            if self._run:
                self._live.start()
        elif kind in ("step_started", "step_adopted"):
            self._rows[event["key"]] = (event, None, time.monotonic())
        elif kind == "step_progress" and event["key"] in self._rows:
            start, _, began = self._rows[event["key"]]
            self._rows[event["key"]] = (start, event, began)
        elif kind in ("step_done", "step_failed"):
            self._rows.pop(event["key"], None)
            self._finished += kind == "step_done"
            self._failed += kind == "step_failed"
        if kind in STYLES:
            self.console.print(Text(line(event) or "", style=STYLES[kind]))
        elif kind == "finished":
            self._live.stop()
            bad = event["failed"] or event["interrupted"]
            self.console.print(Text(line(event) or "", style="bold red" if bad else "bold green"))

    def tick(self) -> None:
        self._live.update(self.table(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def table(self) -> Group:
        """What stands below the printed lines now."""
        rows = Table.grid(padding=(0, 2))
        for start, latest, began in self._rows.values():
            done, total = (latest["done"], latest["total"]) if latest else (0, 0)
            bar = ProgressBar(total=total or 1, completed=done, width=20)
            said = progress(latest) if latest else "adopted" if start["event"] == "step_adopted" else "starting"
            rows.add_row(
                Text(start["place"], style="cyan"),
                Text(label(start), overflow="ellipsis", no_wrap=True),
                bar,
                Text(said, no_wrap=True, overflow="ellipsis"),
                Text(duration(time.monotonic() - began), style="dim"),
            )
        counts = f"{self._finished}/{self._run} steps" + (f", {self._failed} failed" if self._failed else "")
        whole = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(1, self._run), completed=self._finished, width=40)
        whole.add_row(bar, Text(counts, style="bold"), Text(eta(self._eta), style="bold"))
        return Group(rows, whole)
