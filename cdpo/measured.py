"""What was measured of the memory that training steps need: `measured/` of a store, read without torch.

A measurement holds for a card (or a share of a machine's memory), a setup (the model at the bottom of the chain and
what else decides how much a row needs) and the longest row. It tells the largest micro-batch that was seen to fit.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cdpo.config.canonical import digest
from cdpo.errors import DamagedFile
from cdpo.files import read_json, write_json
from cdpo.plan.identity import input_identity

if TYPE_CHECKING:
    from cdpo.config.params import Params
    from cdpo.step import Device
    from cdpo.store import Store

#: rows that go through the model at once where devices.yaml says nothing and nothing was measured
DEFAULT = {"cpu": 32, "cuda": 4}
#: parameters that decide how much memory a row and the weights need
DECIDING = ("dtype", "attn_implementation", "lora", "quantization", "optim", "max_new_tokens", "loss_type")
#: models that a training step has in memory, by role
ROLES = ("model", "model_adapter", "reward", "reward_adapter")
#: a measurement is taken for rows that are shorter than those it was made on, by at most this share ...
SHORTER = 0.2
#: ... and for memory that differs from it by at most this share: drivers and libraries count differently
TOLERANCE = 0.05

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    #: "NVIDIA A100-SXM4-80GB", or "cpu"
    card: str
    #: bytes of the card, or those that a step may use
    memory: int
    #: see `setup_of`
    setup: str
    #: tokens of the longest row, prompt and longer response together
    length: int
    #: the largest micro-batch that fitted; 0 where not even one row did
    micro_batch: int
    #: the largest one that was asked for
    most: int
    #: bytes that it needed at most; None where nothing fitted
    peak: int | None

    def rows(self, memory: int, most: int) -> int | None:
        """The micro-batch on `memory` bytes, at most `most`; None where this measurement does not tell."""
        if self.micro_batch < min(most, self.most):
            # a limit was met: it is another one where there is more memory
            known = memory <= (1 + TOLERANCE) * self.memory
        else:
            known = most <= self.most
        fits = self.peak is None or self.peak <= memory
        return min(self.micro_batch, most) if known and fits else None


def micro_batch(device: "Device", batch_size: int) -> int:
    """Rows that go through the model at once on one process; never more than its part of the global batch."""
    asked = device.micro_batch or DEFAULT.get(device.kind, 4)
    return device.fewer(min(asked, _part(device, batch_size)))


def most_rows(device: "Device", batch_size: int) -> int:
    """The largest micro-batch that is of use on `device`: a CPU is not faster for more rows than the default."""
    part = _part(device, batch_size)
    return min(part, DEFAULT["cpu"]) if device.kind == "cpu" else part


def _part(device: "Device", batch_size: int) -> int:
    """A process's rows of the global batch."""
    return -(-batch_size // device.processes)


def setup_of(pipeline: str, params: "Params", inputs: Inputs, parents: Callable[[str], Inputs], processes: int) -> str:
    """A hash of what decides how much memory a row needs. `parents` gives the inputs of a step by its key."""
    values = params.model_dump(mode="json")
    return digest(
        {
            "pipeline": pipeline,
            "params": {name: values[name] for name in DECIDING if name in values},
            "models": {role: _root(inputs[role], parents) for role in ROLES if role in inputs},
            "ranks": processes > 1,
        }
    )


def _root(given: Any, parents: Callable[[str], Inputs]) -> Any:
    """The named model at the bottom of a chain of trainings: its shape is that of all of them."""
    while "step" in given:
        given = parents(given["step"])["model"]
    return input_identity(given)


def remember(store: "Store", found: Measurement) -> None:
    """Keep a measurement in place of an earlier one of the same card, setup and length."""
    name = digest([found.card, found.setup, found.length])[:16]
    write_json(store.root / "measured" / f"{name}.json", asdict(found), durable=False)


def known(store: "Store") -> bool:
    """Whether anything was measured."""
    return any((store.root / "measured").glob("[!.]*.json"))


def recall(store: "Store", card: str, setup: str) -> Iterator[Measurement]:
    """All measurements of a card and setup."""
    for path in sorted((store.root / "measured").glob("[!.]*.json")):
        try:
            found = Measurement(**read_json(path))
        except (DamagedFile, TypeError, FileNotFoundError):
            # another release's, or lost where the machine went down: it is measured again
            continue
        if (found.card, found.setup) == (card, setup):
            yield found


def look_up(store: "Store", card: str, memory: int, setup: str, length: int, most: int) -> Measurement | None:
    """The measurement that tells the micro-batch here, at most `most`; None where none does."""
    telling = [each for each in recall(store, card, setup) if each.rows(memory, most) is not None]
    near = [each for each in telling if (1 - SHORTER) * each.length <= length <= each.length]
    # what does not fit at all does not fit with longer rows either
    hopeless = [each for each in telling if each.micro_batch == 0 and each.length <= length]
    return min(near + hopeless, key=lambda each: (each.micro_batch != 0, each.length), default=None)
