"""What a training step tells while it runs: progress, curves, and a few responses sampled as training goes."""

import time
from typing import Any

import torch
from transformers import EarlyStoppingCallback, GenerationConfig, PrinterCallback, TrainerCallback

from cdpo.config.params import TrainingParams
from cdpo.data.tokens import decode_response, end_token_id
from cdpo.step import Step
from cdpo.train.batches import Row
from cdpo.train.checkpoints import sample_events
from cdpo.train.trl_resume import Remembers
from cdpo.train.watchdog import Watchdog

#: prompts of `tune` that are answered at each evaluation, and how long their answers may be
SAMPLED, SAMPLED_TOKENS = 4, 64


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Progress at every step, every logged point to metrics.jsonl."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.shown: dict[str, Any] = {}
        #: when this attempt began to train, and the tokens that earlier ones trained on
        self.began = self.tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.monotonic()
        self.tokens = max((entry.get("num_tokens", 0.0) for entry in state.log_history), default=0.0)
        self.step.progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step.progress(state.global_step, state.max_steps, **self.shown)

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self.step.alive()

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.step.alive()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        values = {name: float(value) for name, value in logs.items()}
        if "loss" in values:
            rate = (values["num_tokens"] - self.tokens) / max(time.monotonic() - self.began, 1e-9)
            self.shown = {"loss": round(values["loss"], 4), "tokens_per_second": round(rate)}
            self.step.log_metrics(state.global_step, values)
        elif any(name.startswith("eval_") for name in values):
            self.step.log_metrics(state.global_step, values)


class Samples(TrainerCallback):  # type: ignore[misc]
    """Answers to the same few prompts of `tune` at each evaluation and at the end, as events of the kind `sample`.

    They are drawn at temperature 1 from a random stream of their own: training goes on as if nothing had been drawn.
    """

    def __init__(self, step: Step, tokenizer: Any, rows: list[Row]) -> None:
        self.step, self.tokenizer, self.rows = step, tokenizer, rows[:SAMPLED]
        self.last = -1

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        # an attempt that was killed has drawn some already
        self.last = max((event["step"] for event in sample_events(self.step)), default=-1)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.draw(model, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.draw(model, state.global_step)

    def draw(self, model: Any, at: int) -> None:
        if self.step.rank or not self.rows or at <= self.last:
            return
        self.last = at
        longest = max(len(row["prompt_ids"]) for row in self.rows)
        pad = self.tokenizer.pad_token_id
        ids = [[pad] * (longest - len(row["prompt_ids"])) + row["prompt_ids"] for row in self.rows]
        seen = [[0] * (longest - len(row["prompt_ids"])) + [1] * len(row["prompt_ids"]) for row in self.rows]
        sampling = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=SAMPLED_TOKENS,
            eos_token_id=end_token_id(self.tokenizer),
            pad_token_id=pad,
        )
        device = next(model.parameters()).device
        training = model.training
        model.eval()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(self.step.seed_for("samples"))
            answers = model.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(seen, device=device),
                generation_config=sampling,
            )
        model.train(training)
        for row, answer in zip(self.rows, answers[:, longest:].tolist(), strict=True):
            prompt = self.tokenizer.decode(row["prompt_ids"], skip_special_tokens=True).strip()
            response = decode_response(self.tokenizer, answer)
            self.step.event("sample", step=at, prompt_id=row["prompt_id"], prompt=prompt, response=response)


class EarlyStopping(Remembers, EarlyStoppingCallback):  # type: ignore[misc]
    """transformers', which a resumed training would begin to count anew."""

    def remember(self) -> int:
        return int(self.early_stopping_patience_counter)

    def recall(self, kept: int | None) -> None:
        self.early_stopping_patience_counter = kept or 0


def add_callbacks(trainer: Any, step: Step, params: TrainingParams, samples: Samples | None = None) -> None:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Reporter(step))
    # after the Reporter: the point that ends a step stands in its curves
    if step.device.watchdog is not None:
        trainer.add_callback(Watchdog(step, params, trainer))
    if samples is not None:
        trainer.add_callback(samples)
    if params.early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(params.early_stopping_patience))
