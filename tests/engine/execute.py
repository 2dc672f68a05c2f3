"""`python execute.py FOLDER OPTIONS`: what `cdpo execute --display json` does, for a plan of trivial steps."""

import json
import sys
from pathlib import Path

from queueing import Queue

from cdpo import disk
from cdpo.config.devices import Devices
from cdpo.engine.batch.engine import BatchEngine
from cdpo.engine.engines import make_backend
from cdpo.engine.local.engine import LocalEngine
from cdpo.engine.show.display import make_display
from cdpo.errors import CdpoError
from cdpo.plan.graph import Plan
from cdpo.store import Store


class Pretend(Devices):
    """Cards that can be leased and not computed on: the steps that have them run on the CPU."""

    def device(self, pipeline, card):
        return super().device(pipeline, None)


folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
plan = Plan.from_json(json.loads((folder / "plan.json").read_text()))
kind = Pretend if options.get("pretend") else Devices
devices = kind.model_validate({"gpus": [], "cpu_workers": 2, "poll_seconds": 0.05, **options.get("devices", {})})
modules = options.get("modules", {"TRIVIAL": str(Path(__file__).with_name("trivial.py"))})
store, display = Store(folder / "store"), make_display("json")
if options.get("batch"):
    engine = BatchEngine(store, devices, Queue(folder / "queue"), display, modules)
elif devices.engine != "local":
    backend = make_backend(store, devices)
    backend.poll_seconds = 0.3
    engine = BatchEngine(store, devices, backend, display, modules)
else:
    engine = LocalEngine(store, devices, display, modules)
keys = options.get("keys")
try:
    outcome = engine.run(plan, None if keys is None else set(keys), options.get("fail_fast", False))
except (CdpoError, OSError) as error:
    # as the command line tells it
    print(json.dumps({"event": "error", "text": (isinstance(error, OSError) and disk.meaning(error)) or str(error)}))
    sys.exit(1)
sys.exit(outcome.exit_code)
