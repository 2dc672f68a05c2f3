"""TRL's stable trainers, with exact losses for any split of the global batch.

All that leans on TRL's and transformers' insides is here and in the files beside it: trl_exact (what the trainers
share), trl_resume (checkpoints), trl_head (a second head of the model). What the subclasses change:
- rows come tokenised (cdpo.data.tokens) as plain lists: TRL's own preparation of datasets is passed by;
- each micro-batch carries its share of the global batch (cdpo.train.batches), by which its loss is weighted;
- metrics of training are summed by rows and gathered once per logged step, not once per micro-batch;
- evaluation scores every row by itself, so that means do not depend on batches, and the same numbers become
  `scores.parquet`;
- DPO reads the reference's log-probabilities from the rows: they are computed once, by the policy before it is trained;
- a run that is resumed from a checkpoint goes on with the next global batch.

tests/train/test_trl.py says what moved, when TRL does.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from trl.trainer import utils as trl_utils
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer as TRLRewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer as TRLSFTTrainer

from cdpo.train.batches import Part, Row
from cdpo.train.trl_exact import Exact, Scores, no_gathering
from cdpo.train.trl_head import LOGIT_SCALES, add_sampling_head

__all__ = ["DPOConfig", "DPOTrainer", "RewardConfig", "RewardTrainer", "SFTConfig", "SFTTrainer"]


class SFTTrainer(Exact, TRLSFTTrainer):  # type: ignore[misc]
    """Rows: `input_ids`, `labels` (-100 where there is no loss), `response_tokens` (so many last ids).

    The loss is the mean over the labelled tokens of the global batch.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The loss below divides by the labelled tokens of all micro-batches and ranks; Trainer counts them only then.
        self.model_accepts_loss_kwargs = True

    def weighted_loss(self, model: Any, inputs: dict[str, Any], part: Part, num_items_in_batch: Any) -> Any:
        return TRLSFTTrainer.compute_loss(self, model, inputs, num_items_in_batch=num_items_in_batch)

    def score_batch(self, batch: dict[str, Any]) -> list[Scores]:
        """`loss`: the mean negative log-likelihood of the tokens of the response, end token included."""
        outputs = self.model(**batch, fused_lm_head=True)
        losses = -outputs.log_probs.sum(dim=1) / outputs.label_mask.sum(dim=1)
        return [{"loss": loss} for loss in losses.tolist()]

    def score(self, rows: Sequence[Row], journal: Path | None = None) -> dict[str, list[float]]:
        return super().score([{**row, "labels": _response_labels(row)} for row in rows], journal)

    @staticmethod
    def row_length(row: Row) -> int:
        return len(row["input_ids"])

    @staticmethod
    def row_tokens(row: Row) -> int:
        return int(row["response_tokens"])


class RewardTrainer(Exact, TRLRewardTrainer):  # type: ignore[misc]
    """Rows: `chosen_ids`, `rejected_ids`, each with the prompt. The loss is a mean over rows."""

    def weighted_loss(self, model: Any, inputs: dict[str, Any], part: Part, num_items_in_batch: Any) -> Any:
        return TRLRewardTrainer.compute_loss(self, model, inputs) * part.row_share

    def score_batch(self, batch: dict[str, Any]) -> list[Scores]:
        rewards = self.model(**batch, use_cache=False).logits.squeeze(-1).float()
        chosen, rejected = rewards.chunk(2)
        margins = chosen - rejected
        columns = {
            "loss": -F.logsigmoid(margins),
            "accuracy": (margins > 0).float(),
            "margin": margins,
            "chosen": chosen,
            "rejected": rejected,
        }
        return _rows_of(columns)

    @staticmethod
    def row_length(row: Row) -> int:
        return max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    @staticmethod
    def row_tokens(row: Row) -> int:
        return len(row["chosen_ids"])


class DPOTrainer(Exact, TRLDPOTrainer):  # type: ignore[misc]
    """Rows: `prompt_ids`, `chosen_ids`, `rejected_ids`, and after `add_reference` the reference's log-probabilities.

    All losses of TRL but `sft` and `aot*` are means over rows. `sft` is a mean over the chosen tokens of the global
    batch. `aot` and `aot_unpaired` compare the rows of a batch with each other, so theirs must be one micro-batch.
    """

    loss_types: list[str]
    loss_weights: list[float]
    ref_model: Any
    #: rows that went through the model for their reference, on all ranks
    reference_rows = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._weights_asked: list[float] = list(self.loss_weights)
        self.precompute_ref_logps = True

    def weighted_loss(self, model: Any, inputs: dict[str, Any], part: Part, num_items_in_batch: Any) -> Any:
        self.loss_weights = [
            weight * (part.token_share if kind == "sft" else part.row_share)
            for kind, weight in zip(self.loss_types, self._weights_asked, strict=True)
        ]
        return TRLDPOTrainer.compute_loss(self, model, inputs)

    # -- the model, once, for losses other than TRL's -------------------------------------------------------------

    def run_model(self, model: Any, inputs: dict[str, Any], sampled: Any = None) -> Any:
        """What TRL's loss would be given by the model for [chosen; rejected]: `log_probs` [2 x rows, tokens - 1] etc.

        With `sampled`, a mask [2 x rows], the outputs have `sampling_logps` [2 x rows] too: the log-probabilities of
        those responses under the distribution that `sample_at` names, 0 for the others.
        """
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        options = {} if sampled is None else {"sampled": sampled}
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return model(**kept, labels=labels, use_cache=False, fused_lm_head=True, **options)

    def trl_loss(self, outputs: Any, inputs: dict[str, Any], kinds: list[str], weights: list[float]) -> Any:
        """TRL's own loss (a scalar) and metrics from what the model gave."""
        kept = self.loss_types, self.loss_weights
        self.loss_types, self.loss_weights = kinds, weights
        try:
            return TRLDPOTrainer.compute_loss(self, lambda **_: outputs, inputs)
        finally:
            self.loss_types, self.loss_weights = kept

    def sample_at(self, temperature: float) -> bool:
        """Have the model give log-probabilities at a temperature beside 1; False for one whose head scales its logits.

        The log-probabilities of TRL's head are those at temperature 1.
        """
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        config = model.config.get_text_config()
        if any(getattr(config, name, None) not in (None, 1.0) for name in LOGIT_SCALES):
            return False
        add_sampling_head(model, temperature)
        return True

    # -- the reference --------------------------------------------------------------------------------------------

    def keep_reference(self) -> None:
        """Keep a frozen copy of the policy as it is now, where neither an adapter nor a reference model stands for it.

        Needed where pairs come after the first step; must be called before the model is trained.
        """
        if self.ref_model is not None or isinstance(self.model, PeftModel):
            return
        reference = copy.deepcopy(self.model)
        del reference.forward  # bound to the policy: the copy gets a head of its own
        trl_utils.add_fused_lm_head(reference)
        self.ref_model = reference.requires_grad_(False).eval()

    def add_reference(self, rows: Sequence[Row], journal: Path | None = None) -> None:
        """Put `ref_chosen_logps` and `ref_rejected_logps` into the rows that have none; `journal` is as for `score`.

        The reference is `ref_model` where there is one, else what the model is before it is trained (full
        fine-tuning), its frozen copy `ref` (an adapter that is trained on) or the model without its adapter (a new
        one). Raises RuntimeError for full fine-tuning after the first step, when nothing stands for it any more.
        """
        rows = [row for row in rows if "ref_chosen_logps" not in row]
        if rows and self.state.global_step and self.ref_model is None and not isinstance(self.model, PeftModel):
            raise RuntimeError("the policy has been trained already; it is no reference any more")

        def reference(batch: dict[str, Any]) -> list[Scores]:
            batch.pop("values", None)  # SAIL's: the model takes no such thing
            chosen, rejected = self.compute_ref_log_probs(self.ref_model or self.model, batch)
            return _rows_of({"ref_chosen_logps": chosen, "ref_rejected_logps": rejected})

        before = self.rows_passed
        table = self._over_rows(rows, reference, journal)
        self.reference_rows += self.rows_passed - before
        for name, values in table.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value

    # -- evaluation -----------------------------------------------------------------------------------------------

    def score_batch(self, batch: dict[str, Any]) -> list[Scores]:
        """TRL's own loss and metrics of each row as a batch of one; the model runs once for all of them."""
        return self.score_outputs(self.run_model(self.model, batch), batch)

    def score_outputs(self, outputs: Any, batch: dict[str, Any]) -> list[Scores]:
        """TRL's loss (`scored_kinds`) and metrics of each row, from what the model gave."""
        rows = batch["input_ids"].size(0) // 2
        given = vars(outputs)
        return [self._score_row(_one_of(batch, at, rows), _one_of(given, at, rows)) for at in range(rows)]

    def _score_row(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> Scores:
        with no_gathering(self.accelerator):
            loss = self.trl_loss(Outputs(outputs), inputs, self.scored_kinds, self._weights_asked)
        scores = {name: float(self._metrics["eval"][name][-1]) for name in _DPO_METRICS}
        self._metrics["eval"].clear()
        return {"loss": float(loss), **scores}

    @property
    def scored_kinds(self) -> list[str]:
        return list(self.loss_types)

    # The rows hold them already; TRL would compute them anew and keep them in a cache outside of the step's folder.
    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    @staticmethod
    def row_length(row: Row) -> int:
        return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))

    def row_tokens(self, row: Row) -> int:
        """Tokens of the chosen response that the loss sees: those that max_length cuts off are none."""
        tokens, longest = len(row["chosen_ids"]), self.args.max_length
        if longest is None:
            return tokens
        # the first token of a sequence has nothing before it to be told from
        before = len(row["prompt_ids"]) if self.args.truncation_mode == "keep_start" else 1
        return int(min(tokens, longest - before))


_DPO_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)


class Outputs:
    """What a model returned, by attribute."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ = values


def _one_of(values: Any, at: int, rows: int) -> dict[str, Any]:
    """Row `at` of a batch that stacks [chosen; rejected]: tensors of 2 x rows give two entries, tensors of rows one."""
    taken = {}
    for name, value in values.items():
        if torch.is_tensor(value) and value.dim() > 0:
            taken[name] = value[at : at + 1] if len(value) == rows else value[[at, rows + at]]
    return taken


def _rows_of(columns: dict[str, Any]) -> list[Scores]:
    lists = {name: values.tolist() for name, values in columns.items()}
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _response_labels(row: Row) -> list[int]:
    ids: list[int] = row["input_ids"]
    count: int = row["response_tokens"]
    return [-100] * (len(ids) - count) + ids[-count:]
