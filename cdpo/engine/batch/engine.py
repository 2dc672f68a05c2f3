"""One `execute` on a batch system (SLURM, Ray): submits the steps as jobs that the system orders, and watches.

The jobs need nobody: each makes its step and publishes it (job.py), and the batch system starts it when its parents'
jobs have ended well. So whoever submitted may leave, or die; the next execute finds the jobs that live, submits what is
missing and watches again. What became of a step is read from the store first and asked of the batch system second: a
published folder is the truth.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.engine.batch import job
from cdpo.engine.batch.backend import Backend, JobState, Unreachable
from cdpo.engine.outcome import Outcome
from cdpo.engine.program import modules_for
from cdpo.engine.selection import Selection, select, select_parts
from cdpo.engine.services.describe import refuse_unserved
from cdpo.engine.show.display import Display, Silent
from cdpo.engine.show.eta import Estimate
from cdpo.engine.show.reporter import Reporter
from cdpo.engine.signals import Signals
from cdpo.engine.watch import Follower, failure, proc, tail
from cdpo.files import write_json
from cdpo.store import Store, locks

if TYPE_CHECKING:
    from cdpo.config.devices import Devices
    from cdpo.plan.graph import Plan


#: seconds that the workers of cancelled jobs have to end; batch systems kill them half a minute after SIGTERM
GRACE = 60.0
PAUSE = 0.1
#: seconds in which jobs that were cancelled may come back, and are cancelled again
SETTLING = 10.0


@dataclass
class Watched:
    """A job that this execution watches."""

    id: str
    events: Follower
    #: the step's last attempt before this job was queued: its traces lie in the work folder until this one begins
    before: int = 0
    #: attempt of the step that was announced
    attempt: int = 0
    #: what the batch system last said
    state: JobState = field(default_factory=lambda: JobState("waiting"))


class BatchExecution:
    def __init__(
        self,
        store: Store,
        plan: "Plan",
        selection: Selection,
        devices: "Devices",
        backend: Backend,
        display: Display,
        modules: Mapping[str, str],
        fail_fast: bool,
    ) -> None:
        self.store, self.plan, self.selection, self.devices = store, plan, selection, devices
        self.backend, self.modules, self.fail_fast = backend, modules, fail_fast
        self.estimate = Estimate(1)
        self.reporter = Reporter(store, plan, display, self.estimate)
        self.outcome = Outcome(cached=list(selection.cached))
        self.watched: dict[str, Watched] = {}
        self.signals = Signals()
        self.asked = 0.0
        self.unreachable = False

    def run(self) -> Outcome:
        began = time.monotonic()
        self.reporter.opened(self.selection, slots=None, eta=None)
        if self.selection.todo:
            with self.signals:
                self._submit()
                while self.watched and not self.signals.stops:
                    self.signals.wait(self.devices.poll_seconds)
                    self._watch()
                    self.reporter.tick()
        if self.signals.stops and self.watched:
            self.outcome.interrupted = True
            text = "the jobs go on; `cdpo execute` watches them again, `cdpo stop` ends them"
            self.reporter.emit("note", text=f"left: {len(self.watched)} jobs are queued or run; {text}")
        self.reporter.closed(self.outcome, time.monotonic() - began)
        return self.outcome

    def _submit(self) -> None:
        """Queue the steps that nobody makes, parents first."""
        with self._turn() as living:
            for key in self.selection.todo:
                if self.signals.stops:
                    return
                path = self._path(key)
                if key in living:
                    self._watch_job(key, living[key], found=True)
                elif path is not None:
                    # another execution's job has made it meanwhile
                    self._done(key, path)
                else:
                    self._queue(key)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[dict[str, str]]:
        """The jobs that live; entered by one execution after the other, so that none is submitted twice."""
        self.store.locks  # noqa: B018  (makes the folder)
        turn = locks.acquire(self.store.root / "locks" / "submit.lock", wait=True)
        assert turn is not None
        try:
            yield self.backend.living()
        finally:
            turn.release(remove=True)

    def _queue(self, key: str) -> None:
        step = self.plan.steps[key]
        parents = {parent: self.plan.steps[parent] for parent in step.parents}
        job.describe(self.store, step, self.devices, self.modules.get(step.pipeline), parents)
        # not proc.json: by that the job finds what an earlier attempt left running
        (self.store.work(key) / "failure.json").unlink(missing_ok=True)
        self._free(key)
        after = [self.watched[parent].id for parent in step.parents if parent in self.watched]
        self._watch_job(key, self.backend.submit(step, job.command(self.store, key), after), found=False)

    def _free(self, key: str) -> None:
        """Release what jobs that are over claim of the step: where locks are claims, only this tells that they ended.

        Else the new job would wait for ever for one whose node went down.
        """
        claiming = self.store.claiming_jobs(key)
        for id, state in (self.backend.look(sorted(claiming)) if claiming else {}).items():
            if state.kind in ("ended", "unknown"):
                self.store.release_claim(key, id, f"the batch system says that it is over {state.reason}".rstrip())

    def _watch_job(self, key: str, id: str, found: bool) -> None:
        last = proc(self.store.work(key))
        began = found and self.store.is_locked(key)
        before = 0 if last is None or began else last.get("attempt", 1)
        self.watched[key] = Watched(id, self._events(key), before)
        self.reporter.emit("step_queued", key, job=id, found=found)

    # watching

    def _watch(self) -> None:
        ended = self._published()
        for key, each in self.watched.items():
            if key not in ended:
                self._announce(key, each)
                if each.attempt:
                    self.reporter.listen(key, each)
        for key, path in ended.items():
            each = self.watched.pop(key)
            self._announce_finished(key, each, path)
            each.events.moved_to(path)
            self.reporter.listen(key, each)
            self._done(key, path)
        if time.monotonic() - self.asked >= self.backend.poll_seconds:
            self._ask()
            self.asked = time.monotonic()

    def _published(self) -> dict[str, Path]:
        found = {key: self._path(key) for key in self.watched}
        return {key: path for key, path in found.items() if path is not None}

    def _path(self, key: str) -> Path | None:
        """The step's folder, where it is published and whole."""
        step = self.plan.steps[key]
        return self._whole(self.store.place(step.pipeline, step.name, key))

    def _whole(self, place: Path | None) -> Path | None:
        if place is None or not place.exists() or self.store.is_evicted(place) or self.store.intact(place) is not None:
            return None
        return place

    def _events(self, key: str) -> Follower:
        return Follower(self.store.work(key) / "events.jsonl")

    def _announce(self, key: str, each: Watched) -> None:
        """Say once for each attempt where it runs."""
        who = proc(self.store.work(key))
        attempt = 0 if who is None else who.get("attempt", 1)
        if who is not None and attempt > max(each.before, each.attempt):
            log = self.store.work(key) / f"attempt-{attempt}.log"
            self._began(key, each, attempt, who["started"], place=who.get("place", ""), pid=who["pid"], log=str(log))

    def _announce_finished(self, key: str, each: Watched, path: Path) -> None:
        """Say of a step in the store where it ran, unless that was seen."""
        manifest = self.store.manifest(path)
        if manifest["attempt"] > max(each.before, each.attempt):
            place, log = manifest["host"]["name"], str(path / "log.txt")
            self._began(key, each, manifest["attempt"], manifest["started"], place=place, pid=None, log=log)

    def _began(self, key: str, each: Watched, attempt: int, started: float, **facts: Any) -> None:
        each.attempt, each.events = attempt, self._events(key)
        self.estimate.started(key, self.plan.steps[key].pipeline, started)
        self.reporter.emit("step_started", key, slot=None, attempt=attempt, **facts)

    def _ask(self) -> None:
        """Ask the batch system of the jobs; one that is over without a published step has failed."""
        try:
            self._judge(self.backend.look([each.id for each in self.watched.values()]))
            self.unreachable = False
        except Unreachable as error:
            self._tell(error)

    def _tell(self, error: Unreachable) -> None:
        """Say once that the batch system does not answer."""
        if not self.unreachable:
            self.reporter.emit("note", text=f"{error}; the jobs go on, and it is asked again")
        self.unreachable = True

    def _judge(self, states: Mapping[str, JobState]) -> None:
        over = []
        for key, each in self.watched.items():
            state = states.get(each.id, JobState("unknown"))
            if state.kind == "waiting" and each.state.kind == "running":
                self.reporter.emit("note", key, text=f"its job {each.id} waits again ({state.reason})")
            if state.kind in ("ended", "unknown") or state.orphaned:
                over.append(key)
            each.state = state
        # it may have published between the look at the store and the answer
        published = self._published()
        for key in over:
            if key in self.watched and key not in published:
                self._over(key)

    def _over(self, key: str) -> None:
        """A job that is over, or never starts, and whose step is not published."""
        each = self.watched[key]
        if each.state.orphaned:
            # such as a job whose parent's failed under an earlier execute; what this one sees fail blocks what is below
            with self._turn() as living:
                if living.get(key, each.id) == each.id:
                    self.reporter.emit("note", key, text=f"queued again, for no fault of its own: {each.state.reason}")
                    self._queue(key)
                    self._cancel([each.id])
                else:
                    self._watch_job(key, living[key], found=True)
            return
        del self.watched[key]
        step = self.plan.steps[key]
        # another plan's job may have published it under another name
        path = self._whole(self.store.find(key, step.pipeline))
        if path is None:
            self._failed(key, each)
        else:
            self._done(key, path)

    def _done(self, key: str, path: Path) -> None:
        seconds = self.store.manifest(path)["seconds"]
        self.outcome.done.append(key)
        self.estimate.ended(key, seconds)
        finished, run = len(self.outcome.done), len(self.selection.todo)
        self.reporter.done(key, path, seconds, finished=finished, run=run, eta=None)

    def _failed(self, key: str, each: Watched) -> None:
        record = self._record(key, each)
        self.outcome.failed[key] = record["reason"]
        self.estimate.ended(key)
        self.reporter.emit("step_failed", key, reason=record["reason"], log=record["log"], tail=record["tail"])
        below = self._below(key)
        for child in below:
            self.outcome.blocked[child] = self.plan.steps[key].label
            self.reporter.emit("step_blocked", child, by=self.plan.steps[key].label)
        waiting = [other for other, job in self.watched.items() if job.state.kind == "waiting" and other not in below]
        self._cancel([self.watched.pop(other).id for other in [*below, *(waiting if self.fail_fast else ())]])

    def _cancel(self, ids: Sequence[str]) -> None:
        """End jobs that nobody needs. Where the batch system does not answer they stay: such never start."""
        try:
            self.backend.cancel(ids)
        except Unreachable as error:
            self._tell(error)

    def _record(self, key: str, each: Watched) -> dict[str, Any]:
        """How it failed: what its worker said, else what the batch system says; kept as failure.json."""
        work = self.store.work(key)
        log = work / f"attempt-{each.attempt}.log" if each.attempt else each.state.log
        how = each.state.reason or "ended without publishing"
        said = failure(work) or {"reason": f"job {each.id}: {how}", "attempt": each.attempt}
        whole = {"time": round(time.time(), 3), **said, "log": str(log or work), "tail": tail(log) if log else []}
        if work.is_dir():
            write_json(work / "failure.json", whole, durable=False)
        return whole

    def _below(self, key: str) -> list[str]:
        """The watched steps that need `key`."""
        found = {key}
        for other in self.selection.todo:
            if found & set(self.plan.steps[other].parents):
                found.add(other)
        return [other for other in self.selection.todo if other in found and other in self.watched]


class BatchEngine:
    """Runs plans on a batch system. `modules` is as in LocalEngine."""

    def __init__(
        self,
        store: Store,
        devices: "Devices",
        backend: Backend,
        display: Display | None = None,
        modules: Mapping[str, str] | None = None,
    ) -> None:
        self.store, self.devices, self.backend = store, devices, backend
        self.display = display or Silent()
        self._modules = modules

    def run(self, plan: "Plan", keys: set[str] | None = None, fail_fast: bool = False) -> Outcome:
        """Submit every step of `plan`, or those of `keys` and what they need, that is not finished yet, and watch.

        A step that fails blocks its descendants, and the others go on; with `fail_fast` what has not begun is taken
        back. Raises UsageError where a step cannot be run, and Unreachable where the batch system does not answer.
        """
        selection = select(plan, self.store, keys)
        refuse_unserved(self.devices, (plan.steps[key] for key in selection.todo))

        def shards(pipeline: str) -> int:
            wanted = self.devices.of(pipeline).shards
            assert wanted != "auto"  # refused where devices.yaml is read
            return wanted

        plan, selection = select_parts(plan, self.store, keys, selection, shards)
        modules = self._modules if self._modules is not None else modules_for(selection.todo)
        execution = BatchExecution(
            self.store, plan, selection, self.devices, self.backend, self.display, modules, fail_fast
        )
        try:
            return execution.run()
        finally:
            with contextlib.suppress(OSError):
                self.display.close()


def stop(backend: Backend, store: Store, grace: float = GRACE) -> list[str]:
    """Cancel every job of `store`, and let the workers that ran save what they have; returns the keys of their steps.

    A worker that is signalled once more gives up at once, so that whoever would do so waits: at most `grace` seconds.
    """
    living = backend.living()
    backend.cancel(list(living.values()))
    limit = time.monotonic() + grace
    while any(store.is_locked(key) for key in living) and time.monotonic() < limit:
        time.sleep(PAUSE)
    # SLURM was seen to miss a waiting job whose input's job was cancelled in the same breath, and to queue one again
    # that asked for it as it ended
    limit = time.monotonic() + SETTLING
    while (left := list(backend.living().values())) and time.monotonic() < limit:
        backend.cancel(left)
        time.sleep(PAUSE)
    return sorted(living)
