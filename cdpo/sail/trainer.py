"""SAILTrainer: TRL's DPOTrainer with SAIL's online routes (arXiv:2406.15567) and cdpo's own losses.

    from cdpo import SAILConfig, SAILTrainer

    trainer = SAILTrainer("my/model", args=SAILConfig("out", p=0.3, pi=0.2), train_dataset=dataset)
    trainer.train()

Datasets are TRL's: standard or conversational preferences with `prompt`, `chosen` and `rejected`, and where a loss or
an argument asks for them `bt_prob` and the columns named by `weight_column` and `margin_column`.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from peft import PeftModel
from scipy.special import expit

from cdpo.config.preferences import PLUGIN
from cdpo.data.columns import RANGES, numbers
from cdpo.sail.config import SAILConfig, refuse_other_preferences
from cdpo.sail.online import RESPONSES, OnlinePairs
from cdpo.sail.pairs import TermSizes, coefficients, label, pairs_of, takes, term_sizes
from cdpo.sail.routes import SAMPLED, Route
from cdpo.sail.state import SAILState
from cdpo.sail.surrogate import online_terms
from cdpo.sail.workshop import PolicyWorkshop, reward_scorer
from cdpo.train.batches import Part, Row, refuse_split
from cdpo.train.loss_types import COUPLED, OWN_LOSSES, PROBABILITY, TRL_LOSSES
from cdpo.train.losses import LossOptions, Pairs, checked_loss, per_row_losses
from cdpo.train.trl_adapter import DPOTrainer
from cdpo.train.trl_exact import Scores

__all__ = ["SAILConfig", "SAILTrainer"]

#: numbers of a row that the loss needs beside its tokens
VALUES = ("route", "draw", "bt_prob", "margin", "weight")
#: what is logged beside TRL's metrics where rows may take a route; means since the last log, over all ranks
METRICS = {
    **{f"sail/share/{route.name}": "realised share of the rows" for route in Route},
    "sail/preference": "F = log sigmoid(beta z) of rows with an online route, as labelled",
    "sail/swapped": "share of labels drawn from the policy that turned the pair around",
    "sail/t1_over_t2": "size of T1 over that of T2 (DPO's gradient) on rows with an online route; see term_sizes",
    "sail/t3_over_t2": "size of T3 over that of T2 on them",
    "sail/seconds/sampling": "seconds of an optimiser step for responses of the policy",
    "sail/seconds/labels": "for their rewards",
    "sail/seconds/reference": "for the reference's log-probabilities of them",
    "sail/response_tokens": "tokens of a sampled response, its end token included",
    "sail/responses": "responses sampled for an optimiser step",
    "sail/empty": "share of sampled responses without a token before their end",
    "sail/cut_off": "share of sampled responses that max_new_tokens cut off",
    "sail/identical_pairs": "share of sampled pairs whose two responses are the same",
    "sail/reward": "reward of rated responses",
    "sail/reward_margin": "absolute difference of the two rewards of a pair",
    "sail/unrated": "share of pairs that the reward model could not take, which a coin labels",
}

logger = logging.getLogger(__name__)


class SAILTrainer(DPOTrainer):
    """DPOTrainer's arguments, and for the routes that need them:

    reward_model: who labels the responses of DPR and DRO_DPR: a sequence-classification model with one label, its path,
        or a function (prompts, responses) -> rewards.
    reward_processing_class: the tokenizer of that model; read from its path where it is one.
    reverse_reward: True for a cost model, whose high values are bad.
    loss_function: a loss of one's own, (Pairs, LossOptions) -> loss of each row [rows], in place of `loss_type`; see
        cdpo/train/losses.py.
    rows_follow: True where rows are given by `use_rows`, as cdpo's pipelines do, and `train_dataset` only shows one.

    Raises ValueError at once for what cannot be trained: a route without what it needs, options that do not fit.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: SAILConfig | None = None,
        *positional: Any,
        reward_model: Any = None,
        reward_processing_class: Any = None,
        reverse_reward: bool = False,
        loss_function: Callable[[Pairs, LossOptions], torch.Tensor] | None = None,
        rows_follow: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(args, SAILConfig):
            raise TypeError(f"SAILTrainer takes a SAILConfig as `args`, not {type(args).__name__}")
        self.mixture = args.mixture()
        args = copy.copy(args)  # the caller's stays as it was written
        # the rows will hold them: TRL is to load no second model, which with an adapter it never does
        args.precompute_ref_log_probs = not (isinstance(model, PeftModel) or options.get("peft_config"))
        if args.stretch_epochs:
            args.num_train_epochs = args.num_train_epochs / (1 - self.mixture.total)
        self.own_loss = None
        if loss_function is not None:
            if not callable(loss_function):
                raise TypeError(f"loss_function is a function of (pairs, options), not {loss_function!r}")
            self.own_loss = checked_loss(loss_function, getattr(loss_function, "__name__", "loss_function"))
            args.loss_type, args.loss_weights = [PLUGIN], None
            refuse_other_preferences(args)
        if PLUGIN in args.loss_type and self.own_loss is None:
            raise ValueError("loss_type `plugin` stands for a function of one's own: give `loss_function`")
        for name in ("train_dataset", "eval_dataset"):
            if isinstance(options.get(name), IterableDataset):
                raise TypeError(f"{name} is a stream: SAILTrainer draws a route for every row, and needs a Dataset")
        super().__init__(model, ref_model, args, *positional, **options)
        if self.aux_loss_enabled:
            raise ValueError("the losses here are of sequences alone: set router_aux_loss_coef=0.0 for this model")
        if (self.is_fsdp_enabled or self.is_deepspeed_enabled) and not rows_follow:
            raise ValueError("SAILTrainer runs on one process or with torch's DDP, not with FSDP or DeepSpeed")
        scorer = reward_scorer(reward_model, reward_processing_class, reverse_reward, args)
        if self.mixture.rewards and scorer is None:
            raise ValueError("g and dro label responses by a reward model: give `reward_model`")
        self.workshop = PolicyWorkshop(self.model, self._tokenizer, scorer, args, self.accelerator)
        self.options = LossOptions.of(args)
        #: whether T1 uses the log-probabilities of the very distribution that responses are drawn from
        self.exact_sampling = args.top_k == 0 and args.top_p == 1.0
        self.second_head = False
        if self.mixture.samples:
            self.keep_reference()
            if args.temperature != 1.0 and self.exact_sampling:
                self.exact_sampling = self.second_head = self.sample_at(args.temperature)
        self.sail = SAILState(moving=args.baseline == "moving")
        self.sail.workshop = self.workshop
        self.add_callback(self.sail)
        self.eval_rows: dict[str, list[Row]] = {}
        if not rows_follow:
            self._use_datasets()

    @property
    def bias_of_t1(self) -> str:
        """Whether the score-function term is that of the objective, in words."""
        if not any(self.mixture.t1[route] and self.mixture.share(route) for route in SAMPLED):
            return "not used"
        if not self.exact_sampling:
            return "biased: responses are not drawn from the distribution whose log-probabilities it has"
        if self.args.staleness:
            return f"biased: responses are drawn from a policy up to {self.args.staleness} optimiser steps old"
        return "exact"

    # -- rows -----------------------------------------------------------------------------------------------------

    def _use_datasets(self) -> None:
        """The rows of the datasets given, as TRL has tokenised them."""
        args = self.args
        given = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
        self.eval_rows = {
            name: self._rows(dataset, name or "eval") for name, dataset in given.items() if dataset is not None
        }
        self.use_rows(
            self._rows(self.train_dataset, "train", room=args.max_new_tokens if self.mixture.samples else 0),
            [],
            batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )

    def _rows(self, dataset: Dataset, name: str, room: int = 0) -> list[Row]:
        """Rows as lists of token ids with the numbers of the row; those without `room` for a response are left out.

        Raises StepError for a number that a loss reads and that is missing or makes no sense.
        """
        asked = {"bt_prob": "bt_prob", "weight": self.args.weight_column, "margin": self.args.margin_column}
        if not PROBABILITY & set(self.loss_types) and "bt_prob" not in dataset.column_names:
            del asked["bt_prob"]
        given = [{**each, "prompt_id": f"number {at}"} for at, each in enumerate(dataset)]
        values = {kind: numbers(given, column, name, *RANGES[kind]) for kind, column in asked.items() if column}
        longest = self._longest() if room else math.inf
        rows = []
        for at, each in enumerate(given):
            row: Row = {ids: list(each[ids]) for ids in ("prompt_ids", "chosen_ids", "rejected_ids")}
            if len(row["prompt_ids"]) + room <= longest:
                row["prompt"] = each.get("prompt")
                rows.append(row | {kind: column[at] for kind, column in values.items()})
        if left_out := len(given) - len(rows):
            said = (
                f"{left_out} of {len(given)} prompts leave no room for max_new_tokens={room} in {longest} tokens "
                "(max_length, or the model's context)"
            )
            if not rows:
                raise ValueError(f"{said}: lower max_new_tokens")
            logger.warning("%s: these rows are left out", said)
        return rows

    def _longest(self) -> float:
        """Tokens that prompt and response may have together."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.args.max_length or math.inf, context or math.inf)

    def use_rows(self, rows: Sequence[Row], tune_rows: Sequence[Row], *, batch_size: int, seed: int) -> None:
        super().use_rows(rows, tune_rows, batch_size=batch_size, seed=seed)
        args = self.args
        refuse_split(self.loss_types, batch_size, args.per_device_train_batch_size, args.world_size)
        self.batches.collate = self.collate
        self.online = OnlinePairs(
            self.batches,
            self.mixture,
            self.workshop,
            self.add_reference,
            seed=args.seed,
            staleness=args.staleness,
            reward_probability=lambda difference: float(expit(difference / args.bt_temperature)),
            draw_labels=args.reward_labels == "bt",
            steps_left=lambda: self.state.max_steps - self.state.global_step,
        )
        self.sail.online = self.online
        if self.mixture.total:
            self.batches.rows_of = self._rows_of
            for name in METRICS:
                self.add_mean(name, 0.0, 0.0)

    def rows_seen(self) -> list[Row]:
        """The rows that training will use with their own pair: what a route replaces each time needs no reference."""
        steps = self.args.max_steps
        epochs = math.ceil(steps / self.batches.steps if steps > 0 else self.args.num_train_epochs)
        offline = set(self.online.offline_rows(epochs))
        if 0 < steps < self.batches.steps:
            offline &= set(self.batches.seen(steps))
        return [self.batches.dataset[at] for at in sorted(offline)]

    def _rows_of(self, epoch: int, number: int) -> list[Row]:
        rows = self.online.rows_of(epoch, number)
        for row in rows:
            self.sail.realised[Route(row["route"])] += 1
        report = self.online.taken()
        for name, seconds in report.seconds.items():
            self.add_mean(f"sail/seconds/{name}", seconds, 1)
        responses = RESPONSES * report.pairs
        self.add_mean("sail/response_tokens", report.tokens, responses)
        self.add_mean("sail/responses", responses, 1)
        self.add_mean("sail/empty", report.empty, responses)
        self.add_mean("sail/cut_off", report.cut_off, responses)
        self.add_mean("sail/identical_pairs", report.identical, report.pairs)
        self.add_mean("sail/reward", report.reward, report.rated)
        self.add_mean("sail/unrated", report.unrated, report.rated + report.unrated)
        self.add_mean("sail/reward_margin", report.reward_margin, report.rated)
        return rows

    def train(self, *args: Any, **options: Any) -> Any:
        if self.bias_of_t1.startswith("biased"):
            logger.warning("T1 is %s", self.bias_of_t1)
        self.add_reference(self.rows_seen())
        for rows in (*self.eval_rows.values(), self.tune_rows):
            self.add_reference(rows)
        return super().train(*args, **options)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Scores:
        """As TRL's: on `eval_dataset`, or on the one(s) given at the start; each row counts alike."""
        if isinstance(eval_dataset, Dataset):
            prepared = self._prepare_dataset(eval_dataset, self.processing_class, self.args, "eval")
            sets = {"": self._rows(prepared, metric_key_prefix)}
        elif isinstance(eval_dataset, dict):
            found: Scores = {}
            for name, dataset in eval_dataset.items():
                found |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        else:
            sets = self.eval_rows or {"": list(self.tune_rows)}
        metrics: Scores = {}
        kept = self.tune_rows
        try:
            for name, rows in sets.items():
                if not rows:
                    raise ValueError("there are no rows to evaluate on: give `eval_dataset`")
                self.add_reference(rows)
                self.tune_rows = rows
                prefix = f"{metric_key_prefix}_{name}" if name else metric_key_prefix
                metrics |= super().evaluate(metric_key_prefix=prefix)
        finally:
            self.tune_rows = kept
        return metrics

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """TRL's batch, and under `values` the numbers that all of the rows have: float32 [rows]."""
        batch: dict[str, Any] = self.data_collator(rows)
        batch["values"] = {
            name: torch.tensor([row[name] for row in rows], dtype=torch.float32)
            for name in VALUES
            if all(name in row for row in rows)
        }
        return batch

    # -- the loss -------------------------------------------------------------------------------------------------

    def weighted_loss(self, model: Any, inputs: dict[str, Any], part: Part, num_items_in_batch: Any) -> Any:
        values = inputs.pop("values", {})
        route = values.get("route")
        online = route is not None and bool((route != Route.OFFLINE).any())
        if not online and self.losses_are_trl:
            self._count(route, part)
            return super().weighted_loss(model, inputs, part, num_items_in_batch)
        sampled = takes(route, SAMPLED) if online and self.second_head else None
        outputs = self.run_model(model, inputs, sampled=None if sampled is None else torch.cat([sampled, sampled]))
        outputs, inputs, swapped = label(outputs, inputs, values, self.beta)
        pairs = pairs_of(outputs, inputs, values)
        losses = self._row_losses(outputs, inputs, pairs, values, part)
        if online:
            losses = losses + self._terms(outputs, pairs, route)
            if part.rows:
                self._log_sizes(term_sizes(pairs, route, swapped, self.mixture, self.beta, self.sail.baseline))
        self._count(route, part)
        return losses.mean() * part.row_share

    @property
    def losses_are_trl(self) -> bool:
        """Whether TRL's own loss serves: nothing is asked for that weights or shifts single rows."""
        return (
            self.own_loss is None
            and set(self.loss_types) <= set(TRL_LOSSES)
            and self.args.weight_column is None
            and self.args.margin_column is None
        )

    def _row_losses(self, outputs: Any, inputs: Any, pairs: Pairs, values: Mapping[str, Any], part: Part) -> Any:
        """The base loss of each row [rows], and TRL's metrics of the rows as labelled."""
        if self.losses_are_trl and not set(self.loss_types) <= set(OWN_LOSSES):
            # One number for the batch, which as the loss of each row is its own mean. The mean over tokens of `sft` is
            # weighted by tokens: `weighted_loss` will multiply it by the share of rows.
            by_tokens = part.token_share / part.row_share if part.rows else 1.0
            weights = [
                weight * (by_tokens if kind == "sft" else 1.0)
                for kind, weight in zip(self.loss_types, self._weights_asked, strict=True)
            ]
            return self.trl_loss(outputs, inputs, list(self.loss_types), weights).expand(len(pairs.chosen_logps))
        with torch.no_grad():
            self.trl_loss(outputs, inputs, ["sigmoid"], [1.0])
        losses = per_row_losses(self.loss_types, self._weights_asked, pairs, self.options, own=self.own_loss)
        weight = values.get("weight") if self.args.weight_column is not None else None
        return losses if weight is None else weight * losses

    def _terms(self, outputs: Any, pairs: Pairs, route: Any) -> Any:
        """What SAIL adds to the loss of each row [rows]."""
        if self.second_head:
            chosen, rejected = outputs.sampling_logps.chunk(2)
        else:
            chosen, rejected = pairs.chosen_logps, pairs.rejected_logps
        t1, t3 = coefficients(self.mixture, route)
        preference = F.logsigmoid(self.beta * pairs.z)
        return online_terms(preference, chosen + rejected, t1=t1, t3=t3, baseline=self.sail.baseline)

    def _log_sizes(self, sizes: TermSizes) -> None:
        self.add_mean("sail/preference", sizes.preference, sizes.online)
        self.add_mean("sail/swapped", sizes.swapped, sizes.self_labelled)
        self.add_mean("sail/t1_over_t2", sizes.t1, sizes.t2)
        self.add_mean("sail/t3_over_t2", sizes.t3, sizes.t2)
        self.sail.add_preferences(sizes.scored_preference, sizes.scored)

    def _count(self, route: Any, part: Part) -> None:
        if route is None or not part.rows:
            return
        for each in Route:
            self.add_mean(f"sail/share/{each.name}", float((route == each).sum()), part.rows)

    # -- evaluation -----------------------------------------------------------------------------------------------

    def score_batch(self, batch: dict[str, Any]) -> list[Scores]:
        values = batch.pop("values", {})
        if self.losses_are_trl:
            return super().score_batch(batch)
        outputs = self.run_model(self.model, batch)
        pairs = pairs_of(outputs, batch, values)
        scores = self.score_outputs(outputs, batch)
        # a loss that compares rows with each other is that of a batch of one here
        each = [pairs.row(at) for at in range(len(scores))] if COUPLED & set(self.loss_types) else [pairs]
        losses = torch.cat(
            [per_row_losses(self.loss_types, self._weights_asked, one, self.options, own=self.own_loss) for one in each]
        )
        if self.args.weight_column is not None:
            losses = values["weight"] * losses
        return [{**row, "loss": loss} for row, loss in zip(scores, losses.tolist(), strict=True)]

    @property
    def scored_kinds(self) -> list[str]:
        return super().scored_kinds if self.losses_are_trl else ["sigmoid"]
