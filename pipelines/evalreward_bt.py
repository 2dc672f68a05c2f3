"""EVALREWARD_BT: label a prepared dataset with the probability by which a reward model prefers its chosen responses.

out/: the dataset (train.parquet, tune.parquet, eval.parquet, all columns kept) with the columns `chosen_score`,
`rejected_score` and `bt_prob` = sigmoid((chosen_score - rejected_score) / bt_temperature), and report.json: by split
the rows, the share whose chosen response scores higher (a tie counts half), the share of probabilities within 1e-3 of
0 or 1, and the log loss; and the temperature.

A row whose responses do not fit the reward model is left out and counted: it never gets a probability that nobody
computed. Scores are appended to ckpt/scores.jsonl, and a step that was killed goes on after the last of them.

`python pipelines/evalreward_bt.py --run_name NAME ...` is `cdpo label-bt`.
"""

import sys
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from cdpo.config.params import Count, Fraction, ModelLoading, Positive
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand

ADDED = ("chosen_score", "rejected_score", "bt_prob")
#: the share of saturated probabilities above which a step says so
MANY = 0.5


class EVALREWARDBTParams(ModelLoading):
    """How a dataset is labelled. `dtype`, `attn_implementation` and `template` are the reward model's."""

    reverse: bool = False
    """True for a cost model, whose high values are bad: its scores are negated."""
    bt_temperature: Annotated[
        Annotated[Positive, Tag("number")] | Annotated[Literal["fit"], Tag("word")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "number"),
    ] = 1.0
    """What differences of scores are divided by; `fit`: the value at which the labels of `train` are likeliest."""
    split: Literal["train", "tune", "eval"] | None = None
    """Label this split alone; nothing can be trained on what is left then. Default: all of them."""
    limit: Count | None = None
    """So many rows of each split, drawn by their prompt_id; the labelled dataset has no others."""
    max_dropped: Fraction = 0.05
    """The share of rows that may be too long for the reward model before the step is refused."""

    @model_validator(mode="after")
    def _fit_has_its_split(self) -> "EVALREWARDBTParams":
        if self.bt_temperature == "fit" and self.split not in (None, "train"):
            raise ValueError(f"bt_temperature is fitted on train, and split is {self.split}: give it as a number")
        return self


PIPELINE = Pipeline(
    name="EVALREWARD_BT",
    version=1,
    params=EVALREWARDBTParams,
    takes={"data": "data", "reward": "reward"},
    reads=("chosen", "rejected"),
    gives="labelled",
    rank=35,
    seeded=False,
    method=True,
    adds=ADDED,
    by_rows=True,
)


def run(step: Step) -> dict[str, Any]:
    from cdpo.data.prepared import SPLITS, read_split, write_split
    from cdpo.files import write_json
    from cdpo.generate.responses import choose
    from cdpo.score.bradley_terry import fit_temperature, probabilities
    from cdpo.score.paired import Answered, score_responses
    from cdpo.score.scorer import load_scorer

    params = EVALREWARDBTParams(**step.params)
    rows = []
    for split in SPLITS if params.split is None else (params.split,):
        found = read_split(step.input("data"), split)
        rows += [(split, found[at]) for at in choose(found, params.limit)]
    if replaced := sorted({name for _, row in rows for name in ADDED if name in row}):
        step.note(f"the data's own {', '.join(replaced)} are replaced")
    scorer = load_scorer(step, params)
    compared = [
        Answered(split, row["prompt"], (row["chosen"][0]["content"], row["rejected"][0]["content"]))
        for split, row in rows
    ]
    what = "rows: their chosen or rejected responses"
    scores = score_responses(step, scorer, compared, max_dropped=params.max_dropped, what=what)

    if step.shard is not None:
        return {"scored": scorer.scored}

    differences = {at: chosen - rejected for at, (chosen, rejected) in scores.items()}
    temperature = params.bt_temperature
    if temperature == "fit":
        temperature = fit_temperature([d for at, d in differences.items() if rows[at][0] == "train"])
    bt_prob = dict(zip(differences, probabilities(list(differences.values()), temperature).tolist(), strict=True))
    by_split: dict[str, list[int]] = {split: [] for split, _ in rows}
    for at in scores:
        by_split[rows[at][0]].append(at)
    for split, places in by_split.items():
        labelled = [
            {**rows[at][1], **dict(zip(ADDED, (*scores[at], bt_prob[at]), strict=True))} for at in sorted(places)
        ]
        write_split(step.out, split, labelled)
    report = {
        "bt_temperature": temperature,
        "dropped": len(rows) - len(scores),
        **_summary(step, differences, temperature, fitted=params.bt_temperature == "fit"),
        "splits": {
            split: _described([differences[at] for at in places], temperature) for split, places in by_split.items()
        },
    }
    write_json(step.out / "report.json", report)
    return report


def _summary(step: Step, differences: dict[int, float], temperature: float, *, fitted: bool) -> dict[str, Any]:
    """What is said of all rows together, with a warning where the probabilities are labels in disguise."""
    found = _described(list(differences.values()), temperature)
    if found["saturated"] > MANY:
        middle = sorted(map(abs, differences.values()))[len(differences) // 2]
        step.note(
            f"{found['saturated']:.0%} of the probabilities are within 0.001 of 0 or 1, at a temperature of "
            f"{temperature:g}: the scores of this reward model differ by {middle:.3g} (median). Probabilities that say "
            f"how sure it is need a larger bt_temperature{'' if fitted else ', or `bt_temperature: fit`'}"
        )
    return found


def _described(differences: list[float], temperature: float) -> dict[str, Any]:
    from cdpo.score.bradley_terry import log_loss, probabilities, share_saturated

    if not differences:
        return {"rows": 0}
    right = sum(0.5 if d == 0 else float(d > 0) for d in differences)
    return {
        "rows": len(differences),
        "accuracy": right / len(differences),
        "saturated": share_saturated(probabilities(differences, temperature)),
        "log_loss": log_loss(differences, temperature),
    }


if __name__ == "__main__":
    if any(word.startswith("-") for word in sys.argv[1:]):
        from cdpo.cli import main

        sys.argv = ["cdpo", "label-bt", *sys.argv[1:]]
        main()
    else:
        run_by_hand(run)
