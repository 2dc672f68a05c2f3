"""`python -m cdpo.engine.worker WORK`: makes one step in its work folder and publishes it.

The worker needs nobody: it holds the step's lock (inherited from the engine, or taken here where it is started by hand
or by a batch system), runs the pipeline and publishes. Exit codes: 0 published, 1 a CdpoError (its message is the
reason), 3 any other error, 74 its disk failed it (so that it may be unable to say more), 143 stopped by SIGTERM.
"""

import contextlib
import json
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from cdpo import disk, memory, stopping
from cdpo.engine import again, stall
from cdpo.engine.process import identity, user_name
from cdpo.engine.program import load_run
from cdpo.engine.services import client as services
from cdpo.errors import CdpoError, OutOfMemory, StepError
from cdpo.files import read_json, write_json
from cdpo.step import Step
from cdpo.store import Store, locks, provenance, publish, removal
from cdpo.store.names import key_of, short

#: environment variable by which the engine hands over the locks and what belongs in proc.json
LAUNCH = "CDPO_LAUNCH"
UNEXPECTED = 3


def main(work: Path) -> int:
    """Make the step of `work`, a folder `work/<key>` of a store; returns the exit code."""
    work = Path(os.path.abspath(work))
    store = Store(work.parent.parent)
    stopping.obey(insistent=True)
    given = dict(os.environ)
    launch: dict[str, Any] = json.loads(os.environ.pop(LAUNCH, "{}"))
    key = work.name
    described = launch.pop("lock", None)
    lock = locks.inherited(described) if described else store.lock(key)
    if lock is None:
        print(f"{work}: another process makes this step", file=sys.stderr)
        return 1
    started = time.time()
    held = launch.pop("leases", [])
    try:
        write_json(work / "proc.json", {**identity(), "started": round(started, 3), **launch}, durable=False)
        _sign(held, store, work, started)
        if not publish.is_staged(work):
            _make(work, launch, started)
        shards = read_json(work / "step.json")["inputs"].get("shards", [])
        path = publish.complete(store, work)
        manifest = store.manifest(path)
        done = {name: manifest[name] for name in ("key", "pipeline", "name", "seconds")}
        # finished it is in any case, also where the disk is full
        with contextlib.suppress(OSError):
            store.append_event({"event": "step_done", **done, "path": str(path.relative_to(store.root))})
            store.unlock(key, lock)
            _clear(store, shards)
        return 0
    except stopping.Stopped:
        return stopping.STOPPED
    except OutOfMemory as error:
        if again.may_fit(work, error):
            given[LAUNCH] = json.dumps({**launch, "lock": lock.described(), "leases": held})
            again.begin(work, error, given, [*lock.descriptors, *held])
        return _refused(work, launch, f"{error}. {memory.ADVICE}")
    except CdpoError as error:
        return _refused(work, launch, str(error))
    except BaseException as error:
        trouble = disk.explained(error, work)
        if trouble is not None:
            return _refused(work, launch, f"{trouble}; then `cdpo execute` goes on", disk.FAILED)
        traceback.print_exc()
        sys.stderr.flush()
        _failed(work, launch, UNEXPECTED, "".join(traceback.format_exception_only(error)).strip())
        return UNEXPECTED


def _refused(work: Path, launch: dict[str, Any], reason: str, code: int = 1) -> int:
    """Record and tell what a user can mend; the exit code. To be called where the error is handled."""
    # where the disk is to blame, neither may be possible; then the exit code says so
    with contextlib.suppress(OSError):
        _failed(work, launch, code, reason)
    with contextlib.suppress(OSError):
        print(reason, file=sys.stderr, flush=True)
        if os.environ.get("CDPO_DEBUG") == "1":
            traceback.print_exc()
    return code


def _sign(held: list[int], store: Store, work: Path, started: float) -> None:
    """Say in the leases of this worker's GPUs who has them."""
    if not held:
        return
    from cdpo.engine.gpus import leases

    described = read_json(work / "step.json")
    step = f"{described['pipeline']}/{described['name']}-{short(described['key'])}"
    who = {**identity(), "user": user_name(os.getuid()), "step": step, "store": str(store.root), "since": started}
    # held they are in any case, also where the disk is full
    with contextlib.suppress(OSError):
        for descriptor in held:
            leases.sign(descriptor, who)


def _clear(store: Store, shards: list[str]) -> None:
    """Remove the parts of which a step was joined; where this process is killed before, `cdpo gc` does."""
    parts = [Path(shard).parent for shard in shards]
    found = [removal.Removal("step", part, 0, "joined", key_of(part.name)) for part in parts if part.exists()]
    for _ in removal.remove(store, found):
        pass


def _make(work: Path, launch: dict[str, Any], started: float) -> None:
    for name in ("out", "inputs", "modules", publish.STAGING):
        shutil.rmtree(work / name, ignore_errors=True)
    described = read_json(work / "step.json")
    (work / "out").mkdir()
    step = Step.read(work)
    silence = (step.device.watchdog or {}).get("stall_minutes")
    with stall.watched(work, silence, lambda reason: _failed(work, launch, 1, reason)), services.held(step):
        _check_inputs(work, described)
        _build(work, described)
        if step.device.processes > 1 or step.device.accelerate_config is not None:
            from cdpo.engine.ranks import launchers

            summary = launchers.run(work, step.device)
        else:
            with memory.recognised():
                summary = dict(load_run(described)(step) or {})
    sys.stdout.flush()
    sys.stderr.flush()
    finished = time.time()
    manifest = {
        **{name: described[name] for name in ("key", "pipeline", "name", "version", "params", "seed")},
        "inputs": described["planned"],
        "started": round(started, 3),
        "finished": round(finished, 3),
        "seconds": round(finished - started, 3),
        "attempt": launch.get("attempt", 1),
        "code": provenance.source_digest(),
        "versions": provenance.versions(),
        "host": provenance.host(),
        "device": {**described["device"], "gpus": launch.get("gpus", [])},
        "summary": summary,
    }
    if described.get("shard"):
        manifest["shard"] = described["shard"]
    if "out_of_memory" in described:
        manifest["out_of_memory"] = described["out_of_memory"]
    log = work / f"attempt-{launch.get('attempt', 1)}.log"
    publish.stage(work, manifest, log)


def _check_inputs(work: Path, described: dict[str, Any]) -> None:
    """Raise StepError for an input that is not what its step published: a disk, or a hand, has changed it since."""
    store = Store(work.parent.parent)
    read = [described["inputs"][role] for role, planned in described["planned"].items() if "step" in planned]
    for path in (Path(out).parent for out in [*read, *described["inputs"].get("shards", [])]):
        wrong = store.altered(path)
        if wrong is not None:
            again = f"`cdpo redo {key_of(path.name)}`, then `cdpo execute`, makes it again"
            raise StepError(f"its input {path.parent.name}/{path.name} is damaged: {wrong}; {again}")


def _build(work: Path, described: dict[str, Any]) -> None:
    """Make the inputs that cdpo makes itself, under `inputs/<role>`."""
    for role, planned in described["planned"].items():
        if "built" in planned:
            from cdpo import models

            folder = work / "inputs" / role
            folder.mkdir(parents=True)
            models.build(planned["built"], folder)


def _failed(work: Path, launch: dict[str, Any], code: int, reason: str) -> None:
    record = {"exit": code, "reason": reason, "attempt": launch.get("attempt", 1), "time": round(time.time(), 3)}
    # where the store is gone, nothing is to be made in its place
    os.stat(work)
    write_json(work / "failure.json", record, durable=False)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m cdpo.engine.worker WORK   (a folder work/<key> of a store, with a step.json)")
    sys.exit(main(Path(sys.argv[1])))
