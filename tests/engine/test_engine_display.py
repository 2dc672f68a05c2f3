"""The three fronts, and the estimate that they show."""

import io
import json
import subprocess
import sys
import time

from cdpo.engine.show.display import Json, Plain, make_display
from cdpo.engine.show.eta import Estimate

KEY = "ab" * 32
STEP = {"key": KEY, "pipeline": "SFT", "name": "tiny", "time": 0.0}
LEFT = {"seconds": 185.0, "complete": True}
EVENTS = [
    {"event": "plan", "time": 0.0, "total": 3, "cached": 1, "run": 2, "slots": 2, "eta": None},
    {"event": "step_started", **STEP, "slot": 0, "place": "cpu 0", "attempt": 1, "pid": 7, "log": "/w/attempt-1.log"},
    {"event": "step_progress", **STEP, "done": 1, "total": 4, "unit": "steps", "values": {"loss": 0.5}, "eta": LEFT},
    {"event": "step_progress", **STEP, "done": 1, "total": 4, "unit": "steps", "values": {"loss": 0.5}, "eta": LEFT},
    {"event": "note", **STEP, "text": "3 rows dropped"},
    {"event": "step_done", **STEP, "seconds": 42.0, "path": "/s", "finished": 1, "run": 2, "eta": LEFT},
    {"event": "step_failed", **STEP, "reason": "boom", "log": "/w/attempt-1.log", "tail": ["one", "[red]two"]},
    {"event": "step_blocked", **STEP, "by": "SFT/tiny-abab"},
    {"event": "finished", "time": 1.0, "done": 1, "cached": 1, "failed": 1, "blocked": 1, "interrupted": False,
     "seconds": 43.0, "exit_code": 1},
]  # fmt: skip


def shown(display, stream):
    for event in EVENTS:
        display.show(event)
        display.tick()
    display.close()
    return stream.getvalue()


def test_json_is_one_object_a_line():
    stream = io.StringIO()
    assert [json.loads(line) for line in shown(Json(stream), stream).splitlines()] == EVENTS


def test_plain_lines():
    stream = io.StringIO()
    assert shown(Plain(stream), stream).splitlines() == [
        "3 steps: 1 there already, 2 to run, 2 at once",
        "start    SFT/tiny-abababababab  [cpu 0]",
        "         SFT/tiny-abababababab  1/4 steps  loss 0.5  about 3m 05s left",
        "note     SFT/tiny-abababababab: 3 rows dropped",
        "done     SFT/tiny-abababababab  in 42 s  (1/2, about 3m 05s left)",
        "FAILED   SFT/tiny-abababababab: boom",
        "    | one",
        "    | [red]two",
        "    log: /w/attempt-1.log",
        "blocked  SFT/tiny-abababababab  by SFT/tiny-abab",
        "finished in 43 s: 1 done, 1 there already, 1 failed, 1 blocked",
    ]


def test_rich_shows_a_row_per_place_and_prints_failures():
    from rich.console import Console

    from cdpo.engine.show.rich_display import Rich

    stream = io.StringIO()
    display = Rich(stream)
    for event in EVENTS[:4]:
        display.show(event)
    screen = io.StringIO()
    Console(file=screen, width=120).print(display.table())
    rows = screen.getvalue().splitlines()
    assert "cpu 0" in rows[0]
    assert "SFT/tiny" in rows[0]
    assert "1/4 steps  loss 0.5" in rows[0]
    assert "0/2 steps" in rows[1]
    assert "about 3m 05s left" in rows[1]
    for event in EVENTS[4:]:
        display.show(event)
    display.close()
    assert "FAILED   SFT/tiny-abababababab: boom" in stream.getvalue()
    assert "[red]two" in stream.getvalue()


def test_the_front_follows_the_stream():
    assert isinstance(make_display("auto", io.StringIO()), Plain)
    assert isinstance(make_display("json", io.StringIO()), Json)


def test_rich_and_heavy_modules_are_imported_only_when_used():
    code = (
        "import sys; import cdpo.engine.local.engine, cdpo.engine.show.display;"
        "import cdpo.engine.status, cdpo.engine.stop, cdpo.store;"
        "import cdpo.store.removal, cdpo.store.transfer, cdpo.engine.worker;"
        "print([name for name in ('rich', 'pydantic', 'torch', 'pandas', 'numpy', 'yaml') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_estimate_takes_past_steps_then_progress():
    estimate = Estimate(slots=2)
    estimate.waits("SFT", 4)
    assert estimate.left() is None
    estimate.timed("SFT", [10.0, 12.0, 11.0])
    assert estimate.left() == {"seconds": 22.0, "complete": True}
    estimate.waits("GEN", 1)
    assert estimate.left() == {"seconds": 22.0, "complete": False}
    estimate.waits("GEN", -1)
    estimate.started("k", "GEN", time.time() - 30)
    assert not estimate.left()["complete"]
    estimate.progressed("k", 0.5)
    assert estimate.left() == {"seconds": 37.0, "complete": True}
    estimate.ended("k", 60.0)
    estimate.waits("GEN", 1)
    assert estimate.left() == {"seconds": 52.0, "complete": True}
