"""The smallest batch system: `python queueing.py FOLDER` starts the jobs of a folder; `Queue` submits to it.

<n>.job is a queued command with the jobs that must end well before it; <n>.running, <n>.ended and <n>.cancelled say
what became of it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cdpo.engine.batch.backend import JobState, Unreachable


class Queue:
    """A Backend."""

    poll_seconds = 0.05

    def __init__(self, room):
        self.room = room

    def _reach(self):
        if (self.room / "unreachable").exists():
            raise Unreachable("the queue does not answer")

    def living(self):
        self._reach()
        jobs = {path.stem: json.loads(path.read_text()) for path in self.room.glob("*.job")}
        return {job["key"]: number for number, job in jobs.items() if self._state(number).kind != "ended"}

    def submit(self, step, command, after):
        self._reach()
        if (self.room / "slow").exists():
            time.sleep(0.5)
        number = str(len(list(self.room.glob("*.job"))) + 1).zfill(4)
        beside = self.room / f"{number}.new"
        beside.write_text(json.dumps({"key": step.key, "command": list(command), "after": list(after)}))
        beside.rename(self.room / f"{number}.job")
        return number

    def look(self, ids):
        self._reach()
        return {number: self._state(number) for number in ids}

    def _state(self, number):
        for kind in ("ended", "cancelled"):
            if (self.room / f"{number}.{kind}").exists():
                return JobState("ended", f"exit {(self.room / f'{number}.{kind}').read_text()}")
        if (self.room / f"{number}.running").exists():
            return JobState("running")
        job = json.loads((self.room / f"{number}.job").read_text())
        bad = [each for each in job["after"] if self._state(each).kind == "ended" and not self._well(each)]
        return JobState("waiting", "for its parents", orphaned=bool(bad))

    def _well(self, number):
        ended = self.room / f"{number}.ended"
        return ended.exists() and ended.read_text() == "0"

    def cancel(self, ids):
        for number in ids:
            (self.room / f"{number}.cancelled").write_text("cancelled")


def serve(room):
    queue, running = Queue(room), {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    while True:
        for path in sorted(room.glob("*.job")):
            number = path.stem
            if number in running or queue._state(number).kind == "ended":
                continue
            job = json.loads(path.read_text())
            if all(queue._well(each) for each in job["after"]):
                (room / f"{number}.running").touch()
                with open(room / f"{number}.log", "wb") as log:
                    running[number] = subprocess.Popen(job["command"], stdout=log, stderr=log, start_new_session=True)
        for number, process in list(running.items()):
            if process.poll() is not None and not (room / f"{number}.ended").exists():
                (room / f"{number}.tmp").write_text(str(process.returncode))
                os.rename(room / f"{number}.tmp", room / f"{number}.ended")
        time.sleep(0.02)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
