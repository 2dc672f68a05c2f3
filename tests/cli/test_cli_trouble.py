"""Disks that are full or read-only, damaged files, closed streams, interruptions: told in a line, never a traceback."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdpo.files import write_json
from cdpo.store import Store

CDPO = [sys.executable, "-m", "cdpo.cli"]


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    shutil.copytree(project, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def said(*words: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run([*CDPO, *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def of(folder: Path, pipeline: str) -> Path:
    return next((folder / ".cdpo" / "steps" / pipeline).iterdir())


@pytest.mark.parametrize("text", ['{"bro', "[]", ""])
def test_a_damaged_manifest_is_told_by_every_command(copied: Path, text: str) -> None:
    step = of(copied, "RM")
    (step / "manifest.json").write_text(text)
    code, shown = said("plan", cwd=copied)
    assert code == 0
    assert "damaged" in shown
    key = step.name[-12:]
    for words in (["status"], ["why", of(copied, "SFT").name[-12:]], ["logs", key], ["gc"]):
        assert said(*words, cwd=copied)[0] == 0, words
    assert said("redo", key, cwd=copied)[0] == 0
    assert not step.exists()


def test_a_damaged_plan_or_reference_is_named(copied: Path) -> None:
    plan = next((copied / ".cdpo" / "plans").iterdir())
    plan.write_text('{"bro')
    for words in (["gc"], ["why", "abc"], ["clear", "-t", "first", "-y"], ["status"]):
        code, shown = said(*words, cwd=copied)
        assert code in (1, 2)
        assert plan.name in shown
    plan.unlink()
    ref = next((copied / ".cdpo" / "refs" / "first").iterdir())
    ref.write_text("")
    code, shown = said("gc", cwd=copied)
    assert code == 1
    assert ref.name in shown


def test_a_store_that_is_a_file(project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command in ("prep", "status", "gc", "stop", "results"):
        code, shown = said(command, "--store", str(tmp_path / "file"), cwd=project)
        assert code == 2
        assert "is a file" in shown


def test_a_folder_in_the_place_of_a_file_is_an_error_in_one_line(copied: Path) -> None:
    shutil.rmtree(copied / ".cdpo" / "plans")
    (copied / ".cdpo" / "plans").touch()
    code, shown = said("prep", cwd=copied)
    assert code == 1
    assert str(copied / ".cdpo" / "plans") in shown


@pytest.mark.parametrize("closed", ["0<&-", ">&-", "0<&- >&- 2>&-", ">/dev/full", ">/dev/full --display rich"])
def test_closed_and_full_streams_stop_no_step(copied: Path, closed: str) -> None:
    shutil.rmtree(of(copied, "PREP"))
    command = f"{sys.executable} -m cdpo.cli execute --only PREP {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=copied, timeout=120, check=False, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert len(list((copied / ".cdpo" / "steps" / "PREP").iterdir())) == 1
    assert not list((copied / ".cdpo" / "work").iterdir())
    if "full" not in closed:
        assert done.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["prep", "execute"])
def test_an_interruption_before_any_step_says_how_to_go_on(copied: Path, command: str, number: int) -> None:
    # planning waits for as long as nobody writes to this pipe
    tasks = copied / "configs" / "waiting.yaml"
    os.mkfifo(tasks)
    # a shell that runs the tests in the background has its children ignore Ctrl+C
    heeded = (
        f"import os, signal, sys; signal.signal({int(number)}, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", heeded, *CDPO, command, str(tasks)], cwd=copied, stderr=subprocess.PIPE, text=True
    )
    pipe = opened(tasks)
    until_it_waits(process.pid)
    process.send_signal(number)
    _, shown = process.communicate(timeout=60)
    os.close(pipe)
    assert process.returncode == 130
    assert f"interrupted; go on with: cdpo {command}" in shown


def opened(pipe: Path) -> int:
    """The writer's end of a pipe, as soon as somebody reads it: only then does opening it succeed."""
    for _ in range(3000):
        with contextlib.suppress(OSError):
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.02)
    raise AssertionError("nobody reads it")


def until_it_waits(pid: int) -> None:
    """Until a process sleeps in a system call: a signal just before a blocking one would be noticed only after it."""
    asleep = 0
    for _ in range(3000):
        asleep = asleep + 1 if state(pid) == "S" else 0
        if asleep == 10:
            return
        time.sleep(0.02)
    raise AssertionError("it never waits")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_redo_leaves_alone_what_a_running_step_reads(copied: Path) -> None:
    store, sft = Store(copied / ".cdpo"), of(copied, "SFT")
    write_json(store.work("dd" * 32) / "step.json", {"planned": {"model": {"step": sft.name[-12:]}}})
    lock = store.lock("dd" * 32)
    assert lock is not None
    code, shown = said("redo", sft.name, cwd=copied)
    assert code == 1
    assert "a step that runs now reads it" in shown
    assert sft.exists()
    store.unlock("dd" * 32, lock)
