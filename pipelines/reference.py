"""REFERENCE: log-probabilities of a dataset's responses under the policy that trainings on pairs start from.

No user lists it. It is planned in front of every step that learns from pairs, and steps that start from one policy and
compute in the same way read the same file, whatever their loss, beta, learning rate and label noise.

out/<split>.parquet, for `train`, `tune` and `eval`: `prompt_id, chosen, rejected` (hashes of the token ids of the
prompt with that response), `ref_chosen_logps, ref_rejected_logps` (float64: sums over the tokens of the response, end
token included, in nats), one row per row that fits the model; of `train` those alone that training will see, where
`limit` or `max_steps` say so. report.json: `compute` and `weights`, the types that were computed and kept in.

Rows are kept in ckpt/reference-<split>-*.jsonl as they are computed, and a step that was killed goes on after them.
"""

from typing import Any, Literal

from cdpo.config.params import Count, Fraction, ModelLoading
from cdpo.config.preferences import FirstRows
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand


class REFERENCEParams(ModelLoading):
    """What decides the numbers, as the step has it that learns from them."""

    max_length: Count | None = None
    quantization: Literal["nf4"] | None = None
    trains_adapter: bool = False
    """Whether an adapter is trained: the weights beneath it are kept in the type that they compute in, not in fp32."""
    ld_alpha: Fraction | None = None
    """Weight of the tokens beyond the length that both responses share."""
    limit: Count | None = None
    first_rows: FirstRows | None = None

    @property
    def drawn(self) -> bool:
        """Whether the seed decides which rows of `train` are wanted."""
        return self.limit is not None or self.first_rows is not None

    @property
    def max_dropped(self) -> float:
        """The step that learns from the rows counts and refuses those that do not fit."""
        return 1.0


PIPELINE = Pipeline(
    name="REFERENCE",
    version=1,
    params=REFERENCEParams,
    takes={"data": "data", "model": "policy"},
    reads=("chosen", "rejected"),
    gives="reference",
    rank=38,
    stage=False,
    brought=True,
)


def run(step: Step) -> dict[str, Any]:
    from cdpo.train.reference import compute_reference

    return compute_reference(step, REFERENCEParams.model_validate(step.params))


if __name__ == "__main__":
    run_by_hand(run)
