"""What Trainer leaves out of a checkpoint, and what it does with one: all that leans on transformers' insides for it.

Trainer saves weights, optimiser, schedule, random states and its own counters. Beside them a checkpoint holds here
`running.json`: what each rank had summed since the last log, so that the next log is that of a training that was never
stopped, and whether the training was finished. A resumed training goes on with the next global batch, after any number
of ranks and any size of a micro-batch.

tests/train/test_trl.py says what moved, when transformers does.
"""

import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate.utils import gather_object
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import _IncompatibleKeys
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME as OPTIMIZER
from transformers.trainer import SCHEDULER_NAME as SCHEDULER
from transformers.trainer import TRAINER_STATE_NAME as STATE
from transformers.trainer_callback import ExportableState, TrainerState

from cdpo.errors import StepError
from cdpo.files import read_json, write_json
from cdpo.memory import ran_out
from cdpo.train.batches import GlobalBatches

RUNNING = "running.json"
#: how the writers of a checkpoint say that they could not write: Python's, torch's (the C++ one), safetensors'
UNWRITABLE = (OSError, RuntimeError, SafetensorError)


class Unreadable(StepError):
    """A checkpoint that was written whole cannot be loaded."""


class Remembers(ABC, TrainerCallback, ExportableState):  # type: ignore[misc]
    """A callback whose state travels in a checkpoint's trainer_state.json and comes back when training is resumed."""

    @abstractmethod
    def remember(self) -> Any:
        """The state, as JSON."""

    @abstractmethod
    def recall(self, kept: Any) -> None:
        """Take over what `remember` gave; None where training begins at its first step."""

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"kept": self.remember()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # a training that begins has everybody's first state there
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.recall(None if saved is None else saved["attributes"]["kept"])


class Resumable:
    """Stands before Trainer in the order of inheritance. `running` and `run_on` are extended by whoever sums more."""

    #: decides in a step when checkpoints are written (cdpo/train/checkpoints.py); None leaves that to save_strategy
    checkpoints: Any = None

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        #: what a checkpoint said of each rank; None where training begins at its first step
        self._kept: list[dict[str, Any]] | None = None
        self._finished = False
        self.add_callback(_RunOn(self))

    def train(self: Any, *args: Any, **options: Any) -> Any:
        with _skipping_global_batches():
            return super().train(*args, **options)  # type: ignore[misc]

    # -- what has been summed since the last log ------------------------------------------------------------------

    def running(self: Any) -> dict[str, Any]:
        """This rank's sums, as JSON."""
        return {
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "logged_at": self._globalstep_last_logged,
        }

    def run_on(self: Any, everyone: list[dict[str, Any]] | None) -> None:
        """Take over the sums of all ranks, as many as there were; None: nothing has been summed."""
        if everyone is None:
            return
        mine = everyone[self.args.process_index] if len(everyone) == self.args.world_size else None
        # the losses of ranks are averaged when they are logged
        self._tr_loss.fill_(mine["loss"] if mine else sum(each["loss"] for each in everyone) / len(everyone))
        self._total_loss_scalar = everyone[0]["total_loss"]
        self._globalstep_last_logged = everyone[0]["logged_at"]
        # the mean loss of a training is that of all its steps, whoever took them
        self._initial_global_step = 0

    # -- writing --------------------------------------------------------------------------------------------------

    def write_checkpoint(self: Any, folder: Path) -> None:
        """Write all that a resumed training needs into `folder`; to be called on all ranks.

        Raises one of UNWRITABLE where there is no room for it.
        """
        running = self._everyones_running()
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            for each in [*self.callback_handler.callbacks, self.control]:
                if isinstance(each, ExportableState):
                    self.state.stateful_callbacks[type(each).__name__] = each.state()
            self.state.save_to_json(str(folder / STATE))
        self._write_running(folder, running)

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        if self.checkpoints is not None:
            self.checkpoints.save()
            return
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        self._write_running(folder, self._everyones_running())

    def _everyones_running(self: Any) -> list[dict[str, Any]]:
        own = [self.running()]
        return gather_object(own) if self.args.world_size > 1 else own

    def _write_running(self: Any, folder: Path, running: list[dict[str, Any]]) -> None:
        if self.is_world_process_zero():
            finished = bool(self.control.should_training_stop)
            write_json(folder / RUNNING, {"finished": finished, "ranks": running}, durable=False)

    def _maybe_log_save_evaluate(self: Any, *args: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **options)  # type: ignore[misc]
        if self.checkpoints is not None:
            self.checkpoints.after_step()

    # -- reading --------------------------------------------------------------------------------------------------

    def misfit(self: Any, folder: Path) -> str | None:
        """Why this training cannot go on from `folder`, as far as can be told before the model is changed."""
        file = STATE
        try:
            TrainerState.load_from_json(str(folder / STATE))
            file = RUNNING
            _ = read_json(folder / RUNNING)["ranks"][0]["loss"]
            for path in folder.glob("rng_state*.pth"):
                file = path.name
                with transformers.trainer.safe_globals():
                    torch.load(path, weights_only=True)
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                return None  # their own layout, which they check themselves
            file = SCHEDULER
            torch.load(folder / SCHEDULER, weights_only=True)
            file = OPTIMIZER
            saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True, mmap=True)
            groups = [len(group["params"]) for group in saved["param_groups"]]
        except Exception as error:  # whatever another version wrote: it is told, and not used
            return f"{file}: {_one_line(error)}"
        here = [len(group["params"]) for group in self.create_optimizer().param_groups]
        if groups != here:
            return f"its optimiser has groups of {groups} parameters, and this one of {here}"
        return _other_weights(self.model, folder)

    def _init_training_state(self: Any, *args: Any) -> Any:
        found = super()._init_training_state(*args)  # type: ignore[misc]
        folder = args[3]
        self._kept, self._finished = None, False
        if folder is not None and (Path(folder) / RUNNING).exists():  # Trainer's own checkpoint has none
            said = read_json(Path(folder) / RUNNING)
            self._kept, self._finished = said["ranks"], said["finished"]
        if folder is not None and self.state.best_global_step is not None:
            # it is beside this one, wherever that is now
            best = Path(folder).with_name(f"checkpoint-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        return found

    def _run_epoch(self: Any, *args: Any, **options: Any) -> Any:
        if self._finished:  # Trainer would take one step more
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **options)  # type: ignore[misc]

    def _load_from_checkpoint(self: Any, folder: str, model: Any = None) -> None:
        with _readable(folder):
            super()._load_from_checkpoint(folder, model)  # type: ignore[misc]
            if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
                # Where a checkpoint has an adapter in a subfolder, as `ref` is, transformers reads no other one: the
                # policy would go on from where training began.
                self.model.load_adapter(folder, "default", is_trainable=True)

    def _issue_warnings_after_load(self: Any, found: Any) -> None:
        """Of tied weights one is saved, and the others are not missing."""
        own = self.model.state_dict()
        places = Counter(value.data_ptr() for value in own.values())
        missing = [name for name in found.missing_keys if name not in own or places[own[name].data_ptr()] == 1]
        super()._issue_warnings_after_load(_IncompatibleKeys(missing, found.unexpected_keys))  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]

    def _load_scaler(self: Any, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_scaler(checkpoint)  # type: ignore[misc]

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)  # type: ignore[misc]


class _RunOn(TrainerCallback):  # type: ignore[misc]
    """Gives the sums back when Trainer has set its own to nothing."""

    def __init__(self, trainer: Resumable) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.run_on(self.trainer._kept)


@contextlib.contextmanager
def _readable(folder: str | None) -> Iterator[None]:
    """Say of what is raised while a checkpoint is loaded that it is the checkpoint's fault; a full device is not."""
    try:
        yield
    except Exception as error:
        if ran_out(error):
            raise
        raise Unreadable(f"{folder}: it cannot be loaded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """torch's errors go on with pages of advice."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _other_weights(model: Any, folder: Path) -> str | None:
    """How the saved weights differ from those that are trained, by name and shape; None where they do not.

    Trainer would leave out what it finds no place for, and keep what it finds no weights for.
    """
    saved: dict[str, tuple[int, ...]] = {}
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as stream:
                saved |= {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        return f"{path.name}: {error}"
    own = get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict()
    # of tied weights one is saved
    there = {own[name].data_ptr() for name in saved if name in own}
    differing = sorted(
        {name for name, shape in saved.items() if name not in own or tuple(own[name].shape) != shape}
        | {name for name, value in own.items() if name not in saved and value.data_ptr() not in there}
    )
    return f"its weights are not this model's: {', '.join(differing[:3])}" if differing else None


@contextlib.contextmanager
def _skipping_global_batches() -> Iterator[None]:
    """A resumed Trainer passes over what it has seen; its own way takes the loader apart into torch's pieces."""
    original: Callable[..., Any] = transformers.trainer.skip_first_batches

    def skip_first_batches(loader: Any, micro_batches: int = 0) -> Any:
        return loader.after(micro_batches) if isinstance(loader, GlobalBatches) else original(loader, micro_batches)

    transformers.trainer.skip_first_batches = skip_first_batches
    try:
        yield
    finally:
        transformers.trainer.skip_first_batches = original


def sum_over_ranks(values: list[float], args: Any) -> list[float]:
    if args.world_size == 1:
        return values
    summed = torch.tensor(values, dtype=torch.float64, device=args.device)
    torch.distributed.all_reduce(summed)
    found: list[float] = summed.tolist()
    return found
