"""Checkpoints that cannot be written, or are no good: what was there before stays, and nothing fails for ever."""

import os
import random
import resource
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import KILLED, Case, Interrupt, equal
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from cdpo import files
from cdpo.files import read_json
from cdpo.store import Store
from cdpo.train import checkpoint_files
from cdpo.train.trl_resume import OPTIMIZER, STATE, Resumable

SFT = {"learning_rate": 1e-2, "batch_size": 8, "num_train_epochs": 2.0, "lr_scheduler_type": "cosine"}
DPO = {**SFT, "beta": 0.1, "eval_steps": 2, "load_best_model_at_end": True}


@pytest.fixture(scope="module")
def whole(world: Any) -> Case:
    case = Case(world, world.folder / "undisturbed", "SFT", SFT, device={"checkpoint_seconds": 1e9})
    assert case.attempt() == 0, case.said()
    return case


@pytest.fixture
def broken(world: Any, tmp_path: Path) -> Case:
    return Case(world, tmp_path / "store", "SFT", SFT)


def killed_at(case: Case, step: int) -> Path:
    """Kill the step in the middle of an optimiser step; the checkpoint of the one before it."""
    assert case.attempt(Interrupt(step, signal.SIGKILL)) == KILLED, case.said()
    return case.work / "ckpt" / f"checkpoint-{step - 1}"


def reseal(folder: Path) -> None:
    """Have a changed checkpoint look as if it had been written so."""
    said = read_json(folder / checkpoint_files.MARKER)
    (folder / checkpoint_files.MARKER).unlink()
    checkpoint_files.seal(folder, {name: value for name, value in said.items() if name not in ("files", "format")})


# -- written by half --------------------------------------------------------------------------------------------------


def kill_at_call(module: Any, name: str, number: int) -> Callable[[], None]:
    """In the worker: SIGKILL when a function is called for that time after the first checkpoint was sealed."""

    def prepare() -> None:
        original, seal, calls, sealed = getattr(module, name), checkpoint_files.seal, [0], [False]

        def counted(*arguments: Any, **options: Any) -> Any:
            calls[0] += sealed[0]
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **options)

        def sealing(*arguments: Any) -> None:
            (original if name == "seal" else seal)(*arguments)
            sealed[0] = True

        setattr(module, name, counted)
        if name != "seal":
            checkpoint_files.seal = sealing

    return prepare


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        (Resumable, "_write_running", 1),
        (checkpoint_files, "fsync_path", 3),
        (checkpoint_files, "write_json", 1),
        (files, "fsync_path", 1),
        (shutil, "rmtree", 1),
    ],
    ids=["files", "flushing", "before the marker", "after the marker", "cleaning"],
)
def test_killed_while_writing_a_checkpoint(whole: Case, broken: Case, module: Any, name: str, number: int) -> None:
    assert broken.attempt(prepare=kill_at_call(module, name, number)) == KILLED, broken.said()
    assert broken.checkpoints == [1, 2], "the one that was being written, and the one before it"
    assert broken.attempt(Interrupt(4, signal.SIGKILL)) == KILLED, broken.said()
    (note,) = [each for each in broken.notes() if each.startswith("goes on")]
    marker_was_there = module in (files, shutil)
    assert note.startswith(f"goes on from optimiser step {2 if marker_was_there else 1} of 12")
    assert broken.checkpoints == [3], "what a kill left is removed"
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())


class KillSoon(TrainerCallback):
    """SIGKILL so many seconds after the first optimiser step, whatever is done then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun = False

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if not self.begun:
            self.begun = True
            threading.Timer(self.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


@pytest.mark.slow
def test_killed_at_random_moments_until_it_is_done(world: Any, tmp_path: Path) -> None:
    """A checkpoint after every step, so that many kills hit the writing of one."""
    quiet = Case(world, tmp_path / "whole", "DPO", DPO, device={"checkpoint_seconds": 1e9})
    assert quiet.attempt() == 0, quiet.said()
    case = Case(world, tmp_path / "store", "DPO", DPO)
    draw = random.Random(0)
    for at in range(60):
        # later and later, so that a machine on which a step takes long comes to an end as well
        if case.attempt(KillSoon(draw.random() * 0.03 * (10 + at))) == 0:
            break
    assert case.attempts > 3
    equal(quiet.made(), case.made())


# -- a full disk ------------------------------------------------------------------------------------------------------


class DiskFull(TrainerCallback):
    """From step `first` to step `last` no file can hold more than a few bytes."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        full = self.first <= state.global_step <= self.last
        size = 20_000 if full else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_ends_no_training(whole: Case, broken: Case) -> None:
    code = broken.attempt(DiskFull(4, 5), Interrupt(6, signal.SIGKILL))
    assert code == KILLED, broken.said()
    notes = [each for each in broken.notes() if "could not be written" in each]
    assert len(notes) == 2
    assert notes[0].startswith("the checkpoint of optimiser step 4 could not be written (")
    assert "training goes on" in notes[0]
    assert broken.checkpoints == [3], "the one before stays, and no half of another"
    assert broken.attempt(DiskFull(6, 7)) == 0, broken.said()
    equal(whole.made(), broken.made())


def test_the_best_weights_are_not_lost_in_silence(world: Any, tmp_path: Path) -> None:
    case = Case(world, tmp_path, "DPO", DPO, device={"checkpoint_seconds": 1e9})
    assert case.attempt(DiskFull(2, 2)) == 1
    reason = read_json(case.work / "failure.json")["reason"]
    assert reason.startswith("the checkpoint of optimiser step 2 could not be written")
    assert "load_best_model_at_end" in reason
    assert "make room in" in reason
    assert case.attempt() == 0, case.said()


# -- no good ----------------------------------------------------------------------------------------------------------


def garble(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def other_pickle(folder: Path) -> None:
    (folder / OPTIMIZER).write_bytes(b"not what this version writes")
    reseal(folder)


def other_state(folder: Path) -> None:
    path = folder / STATE
    path.write_text(path.read_text().replace('"global_step"', '"steps_taken"'))
    reseal(folder)


def other_groups(folder: Path) -> None:
    saved = torch.load(folder / OPTIMIZER, weights_only=True)
    saved["param_groups"][0]["params"].pop()
    torch.save(saved, folder / OPTIMIZER)
    reseal(folder)


def other_names(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("self_attn", "attention"): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    reseal(folder)


def other_shapes(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    save_file({**weights, name: weights[name][:-1].clone()}, folder / "model.safetensors", metadata={"format": "pt"})
    reseal(folder)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (garble, "model.safetensors is not what was written"),
        (other_pickle, "optimizer.pt: RuntimeError: mmap can only be used"),
        (other_state, "trainer_state.json: TypeError"),
        (other_groups, "its optimiser has groups of"),
        (other_names, "its weights are not this model's: model.layers.0.attention"),
        (other_shapes, "its weights are not this model's: model.layers.0.self_attn.q_proj"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_used_is_told_and_training_begins_anew(
    whole: Case, broken: Case, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(killed_at(broken, 4))
    assert broken.attempt() == 0, broken.said()
    (note,) = [each for each in broken.notes() if "cannot be used" in each]
    assert note.startswith("the checkpoint of optimiser step 3 cannot be used: ")
    assert said in note
    assert note.endswith("; training begins anew")
    assert broken.made().summary["resumed_from"] == []
    equal(whole.made(), broken.made())


def test_the_best_one_is_gone_on_from_where_the_newest_is_damaged(world: Any, tmp_path: Path) -> None:
    quiet = Case(world, tmp_path / "whole", "DPO", DPO, device={"checkpoint_seconds": 1e9})
    assert quiet.attempt() == 0, quiet.said()
    case = Case(world, tmp_path / "store", "DPO", DPO)
    garble(killed_at(case, 4))
    assert case.checkpoints == [2, 3]
    assert case.attempt() == 0, case.said()
    assert case.made().summary["resumed_from"] == [2]
    equal(quiet.made(), case.made())


def test_a_store_may_move_between_two_attempts(world: Any, tmp_path: Path) -> None:
    """The best checkpoint, here that of an earlier attempt, is found where it is, and not where it was."""
    params = {**SFT, "learning_rate": 0.05, "lr_scheduler_type": "constant", "early_stopping_patience": 2}
    params |= {"eval_steps": 2, "load_best_model_at_end": True}
    quiet = Case(world, tmp_path / "whole", "SFT", params, device={"checkpoint_seconds": 1e9})
    assert quiet.attempt() == 0, quiet.said()
    assert quiet.made().summary["best_step"] == 4
    case = Case(world, tmp_path / "store", "SFT", params)
    killed_at(case, 7)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    case.store = Store(tmp_path / "elsewhere")
    assert case.attempt() == 0, case.said()
    equal(quiet.made(), case.made())


def test_one_that_fails_when_it_is_loaded_does_so_once(whole: Case, broken: Case) -> None:
    """The step fails with the reason, and the next attempt is not given the same checkpoint."""
    folder = killed_at(broken, 4)
    (folder / "scheduler.pt").write_bytes(b"nothing that can be read")
    reseal(folder)

    def nothing_seen() -> None:
        Resumable.misfit = lambda *_: None  # type: ignore[method-assign]

    assert broken.attempt(prepare=nothing_seen) == 1
    reason = read_json(broken.work / "failure.json")["reason"]
    assert "checkpoint-3: it cannot be loaded: UnpicklingError" in reason
    assert "It was removed; the next `cdpo execute` goes on without it" in reason
    assert not folder.exists()
    assert broken.attempt() == 0, broken.said()
    equal(whole.made(), broken.made())


def test_another_version_is_named(broken: Case) -> None:
    folder = killed_at(broken, 3)
    other_pickle(folder)
    said = read_json(folder / checkpoint_files.MARKER)
    said["versions"]["torch"] = "1.0"
    (folder / checkpoint_files.MARKER).unlink()
    checkpoint_files.seal(folder, {name: value for name, value in said.items() if name not in ("files", "format")})
    assert broken.attempt() == 0, broken.said()
    (note,) = [each for each in broken.notes() if "cannot be used" in each]
    assert "it was written by python" in note
    assert "torch 1.0" in note


# -- another device ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
@pytest.mark.slow
def test_another_micro_batch_goes_on_from_it(whole: Case, broken: Case, micro_batch: int) -> None:
    killed_at(broken, 9)
    assert broken.attempt(micro_batch=micro_batch) == 0, broken.said()
    made, expected = broken.made(), whole.made()
    assert made.summary["resumed_from"] == [8]
    assert made.summary["micro_batch"] == micro_batch
    assert [line["step"] for line in made.metrics] == [line["step"] for line in expected.metrics]
    for mine, theirs in zip(made.metrics, expected.metrics, strict=True):
        # TRL's means over tokens are weighted by the rows of a micro-batch
        for metric in ("loss", "grad_norm", "learning_rate", "num_tokens", "entropy"):
            assert mine[metric] == pytest.approx(theirs[metric], rel=1e-3), (mine["step"], metric)
    assert made.metrics[:8] == expected.metrics[:8]
    weights = [load_file(each.path / "out/model.safetensors") for each in (made, expected)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-5)
