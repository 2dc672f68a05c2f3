"""How much memory the training steps of a plan need, and which cannot have it, by what was measured on such cards."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdpo.measured import Measurement, look_up, most_rows, setup_of
from cdpo.memory import ADVICE
from cdpo.pipeline import pipelines
from cdpo.plan.estimates import show_size
from cdpo.plan.graph import Plan, PlannedStep
from cdpo.plan.lengths import lengths_name

if TYPE_CHECKING:
    from cdpo.config.devices import Devices
    from cdpo.store import Store


@dataclass(frozen=True)
class Card:
    """A GPU that steps may run on, by the driver's name and its bytes."""

    name: str
    memory: int


class Fit:
    """What was measured of the steps of `plan`.

    `cards`: what steps may run on, None being the CPU; empty where nobody here knows. `lengths`: what `cdpo prep` froze
    with the plan.
    """

    def __init__(
        self, store: "Store", devices: "Devices", plan: Plan, cards: Sequence[Card | None], lengths: Mapping[str, Any]
    ) -> None:
        self.store, self.devices, self.plan, self.lengths = store, devices, plan, lengths
        self.cards = list(dict.fromkeys(cards))

    def largest(self, todo: Sequence[PlannedStep]) -> dict[str, Measurement]:
        """By pipeline, what the largest of its steps in `todo` needs; without those of which nothing is known."""
        largest: dict[str, Measurement] = {}
        for step in todo:
            for found in self._measured(step):
                before = largest.get(step.pipeline)
                if found is not None and found.peak and (before is None or found.peak > (before.peak or 0)):
                    largest[step.pipeline] = found
        return largest

    def lines(self, todo: Sequence[PlannedStep]) -> list[str]:
        """One line for each pipeline of `todo` of which something is known."""
        return [
            f"{pipeline}: {show_size(found.peak or 0)} of {show_size(found.memory)} of memory ({found.card}), "
            f"{found.micro_batch} rows at once, as measured here"
            for pipeline, found in self.largest(todo).items()
        ]

    def obstacles(self, todo: Sequence[PlannedStep]) -> list[str]:
        """Why some of `todo` cannot be run here: where no card has the memory for a single row."""
        found = []
        for step in todo:
            told = list(self._measured(step))
            if told and all(each is not None and each.micro_batch == 0 for each in told):
                where = " or ".join(f"{each.card} ({show_size(each.memory)})" for each in told if each is not None)
                found.append(
                    f"{step.label}: not even one row of {self._length(step)} tokens fits into {where}, as was measured"
                )
        if found:
            found.append(f"{ADVICE}. `micro_batch: 1` for the pipeline in devices.yaml tries all the same")
        return found

    def _measured(self, step: PlannedStep) -> Iterator[Measurement | None]:
        """For each card what was measured of a training step that may choose its micro-batch there."""
        length = self._length(step)
        if length is None:
            return
        params = pipelines()[step.pipeline].params.model_validate(step.params)
        for card in self.cards:
            device = self.devices.device(step.pipeline, card.name if card else None)
            memory = card.memory if card else device.memory
            if device.micro_batch is not None or memory is None:
                continue
            setup = setup_of(
                step.pipeline, params, step.inputs, lambda key: self.plan.steps[key].inputs, device.processes
            )
            most = most_rows(device, step.params["batch_size"])
            yield look_up(self.store, card.name if card else "cpu", memory, setup, length, most)

    def _length(self, step: PlannedStep) -> int | None:
        """Tokens of the longest row that a training step will see; None for any other step, or one without `prep`."""
        if "max_length" not in step.params or "batch_size" not in step.params or step.unavailable:
            return None
        report = self.lengths.get(lengths_name(self.plan, step), {}).get("train")
        return None if report is None else min(report["longest"], report["max_length"])
