"""`python -m cdpo.train.trackers WORK NAME`: tells one tracker of the training in a work folder while it goes on.

A process of its own for each tracker: whatever wandb, trackio or TensorBoard do (wait for a server, start threads,
catch signals, draw random numbers), the training does not notice. It follows `metrics.jsonl`, which the training
writes in any case, so that there is no queue that could be full. The training tells it on stdin how it ended; where
stdin is closed without a word it was killed, and will go on.

A training that goes on from a checkpoint has a metrics.jsonl that ends there, and an own new process like this one. So
each attempt tells the curve from its beginning, in the place of what earlier attempts told; only wandb's server keeps
what it has, and gets what follows.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cdpo.files import read_json
from cdpo.step import Step
from cdpo.store import Store
from cdpo.store.names import folder_name, safe_name

#: what the trackers' projects are called where their own variables name none
PROJECT = "cdpo"
#: how a training may end; a killed one says nothing, and goes on some day
FINISHED, FAILED, STOPPED, KILLED = "finished", "failed", "stopped", "killed"
#: seconds between two looks at metrics.jsonl
LOOK = 0.5
#: seconds that wandb's server has to answer at the beginning, and to take what is left at the end, where
#: WANDB_INIT_TIMEOUT and WANDB_FINISH_TIMEOUT do not say more or less
BEGIN_SECONDS, END_SECONDS = 20.0, 15.0
#: seconds after the training's end in which this process ends, whatever its tracker does
LAST_SECONDS = 30.0
#: digits of a step's key that name its run: wandb takes no more than 64, and shows them
ID = 32
#: letters of a name that wandb's server takes
WANDB_NAME = 128


@dataclass(frozen=True)
class Facts:
    """What a tracker is told of a step. No environment, no command line, no path but those among the parameters."""

    key: str
    pipeline: str
    name: str
    #: the tag of a run that the step belongs to (the first by name, where there are several); None: it has none
    tag: str | None
    #: every resolved parameter, and the seed
    config: dict[str, Any]
    #: the root of the store, below which trackers keep their files
    store: Path

    @classmethod
    def of(cls, work: Path) -> "Facts":
        described, store = read_json(work / "step.json"), Store(work.parent.parent)
        key, pipeline = described["key"], described["pipeline"]
        config = {"pipeline": pipeline, "key": key, "seed": described["seed"], **described["params"]}
        return cls(key, pipeline, described["name"], _tag(store, key), config, store.root)

    @property
    def id(self) -> str:
        return self.key[:ID]

    @property
    def label(self) -> str:
        return f"{self.pipeline}/{self.name}"

    @property
    def folder(self) -> str:
        """A name for files of this step, which no other has."""
        return f"{self.pipeline}-{folder_name(self.name, self.key)}"


class Tracker(Protocol):
    def begin(self, facts: Facts) -> str | None:
        """Open the step's run, or go on with it. What the user should know of where it is, if anything."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One point; `step` grows from call to call."""

    def end(self, state: str) -> str | None:
        """Close the run as FINISHED, FAILED, STOPPED or KILLED. Returns as `begin`; raises where something is lost."""


class TensorBoard:
    """Event files in `<store>/tensorboard/<tag>/<step>/`; TensorBoard's own writer needs neither it nor torch."""

    def begin(self, facts: Facts) -> str | None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.Event, self.Summary = Event, Summary
        folder = facts.store / "tensorboard" / safe_name(facts.tag or "untagged") / facts.folder
        self.writer = EventFileWriter(str(folder))
        # a reader forgets all that stands in the files of earlier attempts
        start = SessionLog(status=SessionLog.START)
        self.writer.add_event(Event(wall_time=time.time(), step=0, session_log=start))
        self._text("config", json.dumps(facts.config, indent=1, ensure_ascii=False))
        self.writer.flush()
        return None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        points = [self.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.add_event(self.Event(wall_time=time.time(), step=step, summary=self.Summary(value=points)))
        self.writer.flush()

    def end(self, state: str) -> str | None:
        self._text("state", state)
        self.writer.close()
        return None

    def _text(self, name: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        shown = "\n".join(f"    {line}" for line in text.splitlines())
        self.writer.add_event(self.Event(wall_time=time.time(), step=0, summary=text_pb(f"cdpo/{name}", shown)))


class Trackio:
    """Runs of a project in `<store>/trackio/`, or in TRACKIO_DIR. It knows no states: the end is an alert."""

    def begin(self, facts: Facts) -> str | None:
        # read when it is imported
        os.environ.setdefault("TRACKIO_DIR", str(facts.store / "trackio"))
        import trackio
        from trackio.api import Run

        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        self.level, self.label, self.problem = trackio.AlertLevel, facts.label, ""
        # it raises nothing where it loses something: it warns
        warnings.showwarning = self._warned
        name = f"{facts.label}-{facts.key[:12]}"
        Run(project, name, facts.id).delete()
        # the run itself in place of trackio.init, which asks the Hub who the user is and watches the machine
        self.run = trackio.Run(
            None, project, None, name=name, run_id=facts.id, group=facts.tag, config=facts.config, existing_runs=[]
        )
        return None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def end(self, state: str) -> str | None:
        if state in (FINISHED, FAILED):
            level = self.level.INFO if state == FINISHED else self.level.ERROR
            self.run.alert(f"{self.label}: {state}", level=level)
        self.run.finish()
        if self.problem:
            raise OSError(self.problem)
        return None

    def _warned(self, message: Warning | str, *_: Any, **__: Any) -> None:
        self.problem = self.problem or str(message)


class Wandb:
    """A run on wandb's server; with WANDB_MODE=offline, or where the server is silent, a folder of `<store>/wandb/`."""

    def begin(self, facts: Facts) -> str | None:
        import wandb

        os.environ.setdefault("WANDB_DIR", str(facts.store))
        self.wandb, self.facts = wandb, facts
        self.points: list[tuple[int, dict[str, float]]] = []
        offline = wandb.setup().settings._offline
        try:
            self.run = self._init("offline" if offline else None)
        except Exception as error:
            if offline:
                raise
            return self._go_offline(f"cannot be reached ({_one_line(error)})")
        return None

    def _go_offline(self, why: str) -> str:
        """Begin the run again as an offline one; `why`, and what the user can do."""
        # it holds the run, and may wait for ever for its server
        self.wandb.teardown(exit_code=1)
        self.run = self._init("offline")
        for step, values in self.points:
            self.run.log(values, step=step)
        return f"{why}: its run is in {self.run.settings.sync_dir}, and `wandb sync` of that sends it"

    def _init(self, mode: Literal["offline"] | None) -> Any:
        """Open the run. An offline one has the whole curve, and replaces what the server has when it is sent."""
        settings = self.wandb.Settings(
            # nothing but what stands in Facts: neither output, code, git, environment, host, user nor machine
            console="off",
            save_code=False,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            program="",
            host="",
            username="",
            email="",
            x_executable="",
            silent=True,
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT") or BEGIN_SECONDS),
            finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT") or END_SECONDS),
            finish_timeout_raises=True,
        )
        run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self.facts.id,
            name=self.facts.label[:WANDB_NAME],
            group=self.facts.tag[:WANDB_NAME] if self.facts.tag else None,
            config=self.facts.config,
            mode=mode,
            resume=None if mode == "offline" else "allow",
            settings=settings,
        )
        # what earlier attempts kept is told again, and must not be sent after this
        for earlier in (self.facts.store / "wandb").glob(f"*run-*-{self.facts.id}"):
            if earlier != Path(run.settings.sync_dir):
                shutil.rmtree(earlier, ignore_errors=True)
        return run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.points.append((step, dict(values)))
        if step >= self.run.starting_step:
            self.run.log(dict(values), step=step)

    def end(self, state: str) -> str | None:
        code = 0 if state == FINISHED else 1
        try:
            self.run.finish(exit_code=code)
        except TimeoutError:
            told = self._go_offline("cannot be reached (it did not take everything in time)")
            self.run.finish(exit_code=code)
            return told
        return None


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}


class Curve:
    """metrics.jsonl as it grows. Lines of one optimiser step (training, then evaluation) are one point."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0
        self.at, self.values = -1, dict[str, float]()

    def points(self, *, last: bool = False) -> Iterator[tuple[int, dict[str, float]]]:
        """The points that are whole: those that another one follows and, where it is the `last` call, the last one."""
        for line in self._lines():
            values = json.loads(line)
            at = values.pop("step")
            if at != self.at and self.values:
                yield self.at, self.values
                self.values = {}
            self.at = at
            self.values |= values
        if last and self.values:
            yield self.at, self.values

    def _lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        with open(self.path, "rb") as stream:
            stream.seek(self.read)
            whole = stream.read().rpartition(b"\n")[0]
        self.read += len(whole) + 1 if whole else 0
        return whole.splitlines()


def main(work: Path, name: str) -> int:
    """Tell the tracker `name` of the training in `work` until that ends; returns 0 if all could be told."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # who ends the step ends this process by that
        signal.signal(number, signal.SIG_IGN)
    tracker, note, state = TRACKERS[name](), Note(Step.read(work), name), None
    heard = threading.Thread(target=_listen, args=(note,), daemon=True)
    heard.start()
    try:
        note(tracker.begin(Facts.of(work)))
        curve = Curve(work / "metrics.jsonl")
        while state is None:
            heard.join(LOOK)
            # asked before the file is read: nothing is written after the training's end
            state = note.state
            for at, values in curve.points(last=state not in (None, KILLED)):
                tracker.log(at, values)
        note(tracker.end(state))
        return 0
    except Exception as error:
        note(f"is told no more: {_one_line(error)}")
        return 1


class Note:
    """Says what went wrong, once, in the log and the events of the step; no more where the step was killed."""

    def __init__(self, step: Step, name: str) -> None:
        self.step, self.name = step, name
        self.state: str | None = None
        self.said = False

    def __call__(self, text: str | None) -> None:
        # a folder that nobody works in may be another attempt's already
        if text is not None and not self.said and self.state != KILLED:
            self.said = True
            self.step.note(f"report_to: {self.name} {text} (the training itself goes on)")


def _listen(note: Note) -> None:
    """Wait for the training's last word on stdin; this process ends soon after it."""
    said = sys.stdin.readline().strip()
    note.state = said or KILLED
    limit = threading.Timer(LAST_SECONDS, _give_up, args=(note,))
    limit.daemon = True
    limit.start()


def _give_up(note: Note) -> None:
    note(f"did not end within {LAST_SECONDS:.0f} s")
    os._exit(1)


def _tag(store: Store, key: str) -> str | None:
    """The tag of the first run that has the step `key`."""
    for path in sorted(store.refs.glob("*/[!.]*.json")):
        # most of many files are not parsed
        text = path.read_text(encoding="utf-8")
        if key in text:
            tag: str = json.loads(text)["tag"]
            return tag
    return None


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), sys.argv[2])
    # what is told is told; threads that a tracker leaves behind are not waited for
    sys.stderr.flush()
    os._exit(code)
