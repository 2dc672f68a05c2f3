"""A pipeline for tests of services: asks its server once for each row, and goes on after what it has.

It does with an address what a client must: a request that nobody answers is asked again of the address that there is.
"""

import json
import os
import time
import urllib.error
import urllib.request

from trivial import tell

from cdpo.engine.services.client import Service
from cdpo.errors import StepError
from cdpo.journal import Journal


def ask(address, prompt, key):
    body = json.dumps({"prompt": prompt, "model": address.model}).encode()
    headers = {"Authorization": f"Bearer {os.environ[key]}"} if key else {}
    request = urllib.request.Request(f"{address.url}/completions", body, headers)
    with urllib.request.urlopen(request, timeout=1) as answer:
        return json.load(answer)


def run(step):
    tell(step, "begin")
    service = Service(step)
    address = service.address()
    with Journal.of(step, "rows.jsonl") as journal:
        for row in range(step.params["rows"]):
            key = f"row {row}"
            while key not in journal:
                try:
                    journal.append(key, ask(address, key, step.device.service["api_key"]))
                except urllib.error.HTTPError as error:
                    raise StepError(f"{key}: {error}") from None
                except OSError as error:
                    step.note(f"{key}: {error}")
                    address = service.address()
            step.progress(row + 1, step.params["rows"], unit="rows")
            time.sleep(step.params.get("pause", 0.0))
        rows = [journal.items[f"row {row}"] for row in range(step.params["rows"])]
    (step.out / "rows.json").write_text(json.dumps(rows))
    tell(step, "end")
    return {"rows": len(rows), "servers": len({row["pid"] for row in rows})}
