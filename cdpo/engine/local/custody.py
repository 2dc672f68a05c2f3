"""Steps in the hands of an execution: their lock, and what is there of them already."""

import contextlib
import shutil
from pathlib import Path

from cdpo.engine.selection import Selection
from cdpo.engine.show.reporter import Reporter
from cdpo.store.locks import Lock

#: a finished step: its folder, and the seconds that it took
Finished = tuple[Path, float]


class Custody:
    def __init__(self, reporter: Reporter, selection: Selection) -> None:
        self.reporter, self.store, self.plan = reporter, reporter.store, reporter.plan
        self.selection = selection

    def take(self, key: str) -> tuple[Lock | None, Finished | None]:
        """The step's lock, or None where another has it; and the step, where that one has finished it meanwhile."""
        lock = self.store.lock(key)
        if lock is None:
            return None, None
        try:
            return lock, self.finished(key)
        except OSError:
            lock.release()
            raise

    def finished(self, key: str) -> Finished | None:
        """The finished step. A damaged one is moved aside. Called with the step's lock."""
        step = self.plan.steps[key]
        path = self.store.look(step.pipeline, step.name, key)
        if path is None:
            return None
        wrong = self.store.intact(path)
        if wrong is not None:
            aside = self.store.move_aside(path, "damaged")
            self.reporter.emit("note", key, text=f"the damaged step was moved to {aside}")
            return None
        return self._seconds(key, path)

    def published(self, key: str, path: Path | None) -> Finished | None:
        """The step as its worker has just published it at `path`; None where it has not, or where that is damaged."""
        return self._seconds(key, path) if path is not None and self.store.intact(path) is None else None

    def _seconds(self, key: str, path: Path) -> Finished | None:
        # an evicted one stays in its place until its successor is published
        if key in self.selection.evicted and self.store.is_evicted(path):
            return None
        return path, self.store.manifest(path)["seconds"]

    def sweep(self, key: str) -> None:
        """Remove what is left of the work on a finished step: its worker was killed while tidying."""
        # in a read-only store it may stay
        with contextlib.suppress(OSError):
            lock = self.store.lock(key)
            if lock is not None:
                self.clear(key, lock)

    def clear(self, key: str, lock: Lock) -> None:
        """Remove the work folder of a finished step, and give up its lock."""
        shutil.rmtree(self.store.work(key), ignore_errors=True)
        self.give_up(key, lock)

    def give_up(self, key: str, lock: Lock) -> None:
        # given up it is in any case; its file may stay
        with contextlib.suppress(OSError):
            self.store.unlock(key, lock)
