"""Ends a training step that comes to nothing: diverged, learning nothing, learning what it need not, forgetting.

The thresholds are those of `watchdog:` in devices.yaml (cdpo/config/watchdog.py). What is looked at are the logged
points, which are the same on all ranks, so that all ranks end together.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cdpo.config.params import TrainingParams
from cdpo.errors import StepError
from cdpo.generate.useless import Tally, expected_to_end
from cdpo.step import Step
from cdpo.train.trl_resume import Remembers

#: what a loss of pairs is while nothing tells chosen and rejected apart, and how near it counts as that
LN2, NEAR = math.log(2), 1e-4
#: A gradient norm of rounding alone: two responses that are the same cancel out to some 1e-7, pairs give over 1e-3.
NO_GRADIENT = 1e-5
#: a learning rate that moves no weight: fp32 has seven digits, and weights are around 0.01
NO_RATE = 1e-10
#: logged points in a row that must be below the threshold of `logps_drop`: one of few rows may be odd
POINTS = 3
#: what is counted from one logged point to the next
COUNTED = ("last", "idle", "low", "accuracy", "rows", "before")
#: what DPO and RM call the share of pairs whose chosen response has the higher reward
ACCURACIES = ("rewards/accuracies", "accuracy")


class Watchdog(Remembers):
    """Looks at each logged point; what it counts travels in the checkpoints."""

    def __init__(self, step: Step, params: TrainingParams, trainer: Any) -> None:
        assert step.device.watchdog is not None
        self.limits = step.device.watchdog
        self.params, self.trainer = params, trainer
        chosen = [trainer.row_tokens(row) for row in trainer.batches.dataset]
        #: tokens of a chosen response, on average over the training rows
        self.chosen_tokens = sum(chosen) / len(chosen)
        most = getattr(params, "max_new_tokens", None)
        self.ends = most is not None and expected_to_end(step, chosen, most)
        self.recall(None)

    def remember(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COUNTED} | {"sampled": asdict(self.sampled)}

    def recall(self, kept: dict[str, Any] | None) -> None:
        self.last = self.idle = self.low = 0
        #: the accuracy that all of the latest `rows` rows had, which follow `before` others; None where it was mixed
        self.accuracy: float | None = None
        self.rows = self.before = 0
        self.sampled = Tally()
        if kept is not None:
            self.sampled = Tally(**kept["sampled"])
            for name in COUNTED:
                setattr(self, name, kept[name])

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        at = state.global_step
        steps, self.last = at - self.last, at
        self._finite(logs, at)
        self._idle(logs, at, steps)
        self._one_sided(logs, at, steps, state.epoch)
        self._forgetting(logs, at)
        self._sampling(logs, at, steps)

    def _finite(self, logs: Mapping[str, float], at: int) -> None:
        if self.limits["finite_loss"] and not math.isfinite(logs["loss"]):
            raise StepError(
                f"the loss is {logs['loss']} at optimiser step {at}: training has diverged. Lower learning_rate, raise "
                "warmup_ratio, or compute in bf16 or fp32 where dtype is fp16"
            )

    def _idle(self, logs: Mapping[str, float], at: int, steps: int) -> None:
        limit = self.limits["idle_steps"]
        # DeepSpeed tells no gradient
        gradient, rate = logs.get("grad_norm", math.inf), logs["learning_rate"]
        self.idle = self.idle + steps if gradient <= NO_GRADIENT or rate <= NO_RATE else 0
        undecided = abs(logs["loss"] - LN2) < NEAR
        if limit is None or self.idle < limit or not (undecided or self.idle == at):
            return
        still = "the gradient is 0" if gradient <= NO_GRADIENT else f"the learning rate is {rate:.1e}"
        where = f"the loss is {logs['loss']:.6f}{', which is ln 2' if undecided else ''}"
        hint = (
            "are the two responses of a row the same? does `lora: target_modules` name layers that the loss depends on?"
            if gradient <= NO_GRADIENT
            else "raise learning_rate"
        )
        raise StepError(
            f"nothing is learned: at optimiser step {at} {where}, and {still}, as in the {self.idle} steps up to here; "
            f"{hint} {_switch('idle_steps')}"
        )

    def _one_sided(self, logs: Mapping[str, float], at: int, steps: int, epoch: float) -> None:
        limit = self.limits["one_sided_rows"]
        accuracy = next((logs[name] for name in ACCURACIES if name in logs), None)
        if limit is None or accuracy is None or epoch > 1 + 1e-9:
            return
        rows = steps * self.params.batch_size
        if accuracy not in (0.0, 1.0):
            self.accuracy, self.before, self.rows = None, self.before + self.rows + rows, 0
        elif accuracy == self.accuracy:
            self.rows += rows
        else:
            self.accuracy, self.before, self.rows = accuracy, self.before + self.rows, rows
        if self.rows >= limit and self.before <= limit // 4:
            hint = (
                "something in the responses gives away which one is chosen (a label, a marker, another language or "
                "format): look at the prepared rows"
                if accuracy
                else "chosen and rejected are the same, or stand in the wrong order: look at the prepared rows"
            )
            raise StepError(
                f"the reward accuracy is exactly {accuracy:.0f} on {self.rows} rows that were new to the model, up to "
                f"optimiser step {at}: {hint} {_switch('one_sided_rows')}"
            )

    def _forgetting(self, logs: Mapping[str, float], at: int) -> None:
        limit = self.limits["logps_drop"]
        if limit is None or "rewards/chosen" not in logs:
            return
        # A reward is beta times the difference of two log-probabilities, of which the reference's is the policy's own
        # as it was at the start: measured on the same rows, unlike the log-probabilities of two batches.
        drop = -logs["rewards/chosen"] / self.trainer.beta / self.chosen_tokens
        self.low = self.low + 1 if drop > limit else 0
        if self.low >= POINTS:
            raise StepError(
                f"the policy forgets what it should learn: at optimiser step {at} the log-probability of the chosen "
                f"responses is {drop:.2f} nats per token below its start. Lower learning_rate, train for fewer epochs, "
                f"raise beta, or add a term that holds it (loss_type: [sigmoid, sft]) {_switch('logps_drop')}"
            )

    def _sampling(self, logs: Mapping[str, float], at: int, steps: int) -> None:
        """SAIL's own samples since they were last judged."""
        count = round(logs.get("sail/responses", 0.0) * steps)
        if not count:
            return
        self.sampled.add(count, logs["sail/empty"] * count, logs["sail/cut_off"] * count)
        if self.sampled.judge(self.limits, f"sampled up to optimiser step {at}", ends=self.ends):
            self.sampled = Tally()


def _switch(name: str) -> str:
    return f"(`watchdog: {{{name}: null}}` in devices.yaml lets it go on)"
