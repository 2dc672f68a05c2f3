"""What SAIL costs beside DPO, and DPO beside TRL's: CPU seconds per training token, arms interleaved, medians.

    python benchmarks/sail.py [PAIRS] [STEPS]

Every arm trains the same SFT policy of the playground on the same rows in the same order, 32 rows a step, for STEPS
optimiser steps, one after the other, PAIRS times. A time is divided by the tokens trained on, because responses of the
policy have other lengths than those of the data; it counts what happens between the first and the last step, and the
reference's log-probabilities of the rows in a column of their own.
"""

import copy
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _machine import print_machine
from transformers import GenerationConfig, TrainerCallback
from trl import DPOConfig
from trl import DPOTrainer as TRLDPOTrainer

from cdpo import SAILConfig, SAILTrainer
from cdpo.config.preferences import PreferenceParams
from cdpo.data.playground import make
from cdpo.data.prepared import write_split
from cdpo.data.tiny import build_tiny
from cdpo.models import load_policy, load_tokenizer
from cdpo.pipelines import rm, sft
from cdpo.score.scorer import RewardScorer
from cdpo.step import Device, Step
from cdpo.train.rows import read_splits

BATCH, NEW_TOKENS, TEMPERATURE = 32, 64, 0.9
#: rows of a micro-batch of the released package (its A100 table), whose routed prompts it answered together
RELEASED_MICRO_BATCH = 4
CPU = torch.device("cpu")
ARMS: dict[str, dict[str, Any]] = {
    "DPO": {},
    "DDP r=.4": {"r": 0.4, "rho": 0.2},
    "DPP p=.3": {"p": 0.3, "pi": 0.2},
    "DPR g=.3": {"g": 0.3, "gamma": 0.3},
}
PARTS = ("generation", "labels", "reference", "rest")


class Clock(TrainerCallback):
    """CPU seconds from the beginning of training to its end."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.seconds = -time.process_time()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds += time.process_time()


class World:
    """A policy after SFT, a reward model, and the rows of the playground, in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for split, rows in make(1500, 50, 50, 7).items():
            write_split(folder / "data", split, rows)
        build_tiny({"kind": "tiny", "seed": 0}, folder / "base")
        policy = self._run(sft, "SFT", {"learning_rate": 2e-3, "num_train_epochs": 3.0})
        reward = self._run(rm, "RM", {"learning_rate": 1e-3, "num_train_epochs": 1.0})
        self.tokenizer = load_tokenizer(policy)
        self.model = load_policy(policy, device=CPU)
        self.scorer = RewardScorer.load(self._step("DPR", {}, reward=str(reward)), batch_size=64)
        params = PreferenceParams(learning_rate=1e-4, beta=0.1)
        self.rows = read_splits(self._step("DPO", {}), params, self.tokenizer).train
        prompts = {row["prompt_id"]: row["prompt"] for row in _prompts(folder / "data")}
        for row in self.rows:
            row["prompt"] = prompts[row["prompt_id"]]

    def _step(self, name: str, params: dict[str, Any], **inputs: str) -> Step:
        work = self.folder / name
        (work / "out").mkdir(parents=True, exist_ok=True)
        named = {"data": str(self.folder / "data"), "model": str(self.folder / "base"), **inputs}
        return Step(name, "key", name, params, named, 0, Device(micro_batch=BATCH), work)

    def _run(self, pipeline: Any, name: str, params: dict[str, Any]) -> Path:
        step = self._step(name, params)
        pipeline.run(step)
        return step.out

    def arguments(self, config: Any, steps: int, **method: Any) -> Any:
        return config(
            output_dir=str(self.folder / "trainer"),
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=1e-4,
            beta=0.1,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            **method,
        )

    def trainer(self, steps: int, **method: Any) -> Any:
        from datasets import Dataset

        rows = [dict(row) for row in self.rows]
        shown = Dataset.from_list([{name: rows[0][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")}])
        if {"p", "g"} & method.keys():
            method |= {"max_new_tokens": NEW_TOKENS, "temperature": TEMPERATURE}
        made = SAILTrainer(
            copy.deepcopy(self.model),
            args=self.arguments(SAILConfig, steps, **method),
            train_dataset=shown,
            processing_class=self.tokenizer,
            reward_model=self.scorer if "g" in method else None,
            rows_follow=True,
        )
        made.use_rows(rows, [], batch_size=BATCH, seed=0)
        return made


def _prompts(folder: Path) -> list[dict[str, Any]]:
    from cdpo.data.prepared import read_split

    return read_split(folder, "train")


def run_arm(world: World, steps: int, method: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of each part per 1,000 tokens trained on."""
    trainer, clock = world.trainer(steps, **dict(method)), Clock()
    spent: dict[str, float] = defaultdict(float)
    for name, part in (("sample", "generation"), ("rate", "labels")):
        setattr(trainer.workshop, name, timed(getattr(trainer.workshop, name), spent, part))
    trainer.add_reference = trainer.online.add_reference = timed(trainer.add_reference, spent, "reference")
    trainer.add_reference(trainer.rows_seen())
    before = spent["reference"]
    trainer.add_callback(clock)
    trainer.train()
    inside = sum(spent.values()) - before
    thousands = trainer.tokens_seen / 1000
    return {
        **{part: spent[part] / thousands for part in PARTS[:-1]},
        "rest": (clock.seconds - inside) / thousands,
        "step": (clock.seconds - inside) / steps,
    }


def timed(function: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            spent[part] += time.process_time() - began

    return call


def run_trl(world: World, steps: int, *, precomputed: bool) -> float:
    """CPU seconds of an optimiser step of TRL's own trainer, on the batches that cdpo's DPO trains on."""
    ours = world.trainer(steps)
    if precomputed:
        ours.add_reference(ours.rows_seen())
    by_step = [ours.batches.own_rows(0, step) for step in range(steps)]
    longest_first = [sorted(rows, key=lambda row: -ours.row_length(row)) for rows in by_step]

    class Loader:
        """The rows of each step, made into tensors when the step comes, as TRL's own loader does."""

        def __len__(self) -> int:
            return steps

        def __iter__(self) -> Any:
            return map(ours.data_collator, longest_first)

    class SameBatches(TRLDPOTrainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return Loader()

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    clock = Clock()
    trainer = SameBatches(
        copy.deepcopy(world.model),
        ref_model=None if precomputed else copy.deepcopy(world.model),
        args=world.arguments(DPOConfig, steps, precompute_ref_log_probs=precomputed),
        train_dataset=ours.train_dataset,
        processing_class=world.tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return clock.seconds / steps


def sampling(world: World, steps: int) -> tuple[float, float]:
    """CPU seconds per sampled pair: as SAILTrainer samples, and as the released package did, at equal settings.

    The released way answers the routed prompts of each micro-batch by themselves, every prompt padded to the longest
    of the dataset, until all are done or have NEW_TOKENS tokens.
    """
    trainer = world.trainer(steps, p=0.3)
    batches = [trainer.online._routed(0, number) for number in range(steps)]
    routed = [[row for row in rows if row["route"] == 1] for rows in batches]
    pairs = sum(map(len, routed))
    began = time.process_time()
    for rows in routed:
        trainer.workshop.sample([row["prompt_ids"] for row in rows for _ in range(2)], list(range(2 * len(rows))))
    ours = time.process_time() - began
    longest = max(len(row["prompt_ids"]) for row in world.rows)
    pad = world.tokenizer.pad_token_id
    settings = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=0, max_new_tokens=NEW_TOKENS, pad_token_id=pad,
        eos_token_id=trainer.workshop.end_ids(),
    )  # fmt: skip
    began = time.process_time()
    for rows in batches:
        for start in range(0, len(rows), RELEASED_MICRO_BATCH):
            asked = [row["prompt_ids"] for row in rows[start : start + RELEASED_MICRO_BATCH] if row["route"] == 1]
            asked = [ids for ids in asked for _ in range(2)]
            if asked:
                fed = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in asked])
                mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked])
                world.model.generate(input_ids=fed, attention_mask=mask, generation_config=settings)
    theirs = time.process_time() - began
    return ours / pairs, theirs / pairs


def median_ratio(name: str, ratios: list[float]) -> None:
    print(f"{name:<62}{statistics.median(ratios):6.3f}   [{min(ratios):.3f}, {max(ratios):.3f}]")


def main(pairs: int, steps: int) -> None:
    print_machine()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        arms: dict[str, list[dict[str, float]]] = defaultdict(list)
        trl: dict[bool, list[float]] = defaultdict(list)
        sampled: list[tuple[float, float]] = []
        for _ in range(pairs + 1):
            for name, method in ARMS.items():
                arms[name].append(run_arm(world, steps, method))
            for precomputed in (True, False):
                trl[precomputed].append(run_trl(world, steps, precomputed=precomputed))
            sampled.append(sampling(world, steps))
    # the first round warms up
    arms = {name: rounds[1:] for name, rounds in arms.items()}
    print(f"\nCPU ms per 1,000 tokens trained on, medians of {pairs} rounds of {steps} steps\n{'':<12}", end="")
    print("".join(f"{part:>12}" for part in PARTS))
    for name, rounds in arms.items():
        medians = [1000 * statistics.median(each[part] for each in rounds) for part in PARTS]
        print(f"{name:<12}" + "".join(f"{value:12.1f}" for value in medians))
    print(f"\n{'ratio, median of ' + str(pairs) + ' pairs':<62}{'':>6}   [least, most]")

    def parts(each: dict[str, float], *names: str) -> float:
        return sum(each[name] for name in names)

    for name in list(ARMS)[1:]:
        both = list(zip(arms[name], arms["DPO"], strict=True))
        median_ratio(f"{name} / DPO, everything", [parts(a, *PARTS) / parts(b, *PARTS) for a, b in both])
        ratios = [parts(a, "reference", "rest") / parts(b, "reference", "rest") for a, b in both]
        median_ratio(f"{name} / DPO, without generation and labels", ratios)
    steps_of = [each["step"] for each in arms["DPO"]]
    median_ratio("DPO step / TRL's, both with the reference at hand", _ratios(steps_of, trl[True][1:]))
    median_ratio("TRL's default step (reference in every step) / DPO step", _ratios(trl[False][1:], steps_of))
    median_ratio("sampling a pair: the released way / SAILTrainer", [b / a for a, b in sampled[1:]])


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    main(*(given + [7, 20][len(given) :]))
