"""MIXTURE: rows of several prepared datasets, as one.

out/<split>.parquet: as PREP's, with the column `dataset`: the name of the dataset that a row comes from.
out/report.json: as PREP's; `parts` says how many rows of each dataset each split has.

Of every dataset the same share of each split is taken: the share that makes the training split what was asked for. No
row is taken twice. Training rows whose prompt is also evaluated, in whichever dataset, are dropped and counted.
"""

from typing import Annotated, Any

from pydantic import Field

from cdpo.config.params import Params
from cdpo.errors import StepError
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand


class MixtureParams(Params):
    parts: list[dict[str, Any]]
    """{"dataset", and "n" or "proportion" where not all is taken}, in the order of the inputs `data_0`, `data_1`."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of the order of the rows."""


PIPELINE = Pipeline(
    name="MIXTURE",
    version=1,
    params=MixtureParams,
    takes={},
    gives="data",
    rank=11,
    seeded=False,
    stage=False,
)


def run(step: Step) -> dict[str, Any]:
    from cdpo.data.mixing import in_order, share_of, taken
    from cdpo.data.prepared import COLUMNS, SPLITS, read_split, write_split
    from cdpo.data.rules import FORMATS
    from cdpo.files import read_json, write_json

    params = MixtureParams(**step.params)
    folders = [step.input(f"data_{at}") for at in range(len(params.parts))]
    names = [part["dataset"] for part in params.parts]
    sizes = [len(read_split(folder, "train")) for folder in folders]
    shares = share_of(params.parts, sizes)
    mixed: dict[str, list[dict[str, Any]]] = {}
    counts: dict[str, dict[str, int]] = {name: {} for name in names}
    for split in SPLITS:
        rows = []
        for name, folder, share in zip(names, folders, shares, strict=True):
            own = taken(read_split(folder, split), share)
            counts[name][split] = len(own)
            rows += [
                {**{key: value for key, value in row.items() if key != "prompt_id"}, "dataset": name} for row in own
            ]
        mixed[split] = in_order(rows, params.seed)
    evaluated = {str(row["prompt"]) for split in ("tune", "eval") for row in mixed[split]}
    kept = [row for row in mixed["train"] if str(row["prompt"]) not in evaluated]
    if not kept:
        raise StepError("every training prompt of the mixture is evaluated too: nothing is left to train on")
    dropped = len(mixed["train"]) - len(kept)
    mixed["train"] = kept
    if dropped:
        step.note(f"dropped {dropped} training rows whose prompts are evaluated in another dataset of the mixture")
    for split in SPLITS:
        write_split(step.out, split, mixed[split])
    formats = [read_json(folder / "report.json")["format"] for folder in folders]
    has = set(COLUMNS).intersection(*(FORMATS[each] for each in formats))
    report = {
        "rule": "mixture",
        "format": next(name for name, columns in FORMATS.items() if set(columns) == has),
        "parts": counts,
        "kept": {split: len(mixed[split]) for split in SPLITS},
        "dropped": {"prompt is evaluated in another dataset": dropped} if dropped else {},
    }
    write_json(step.out / "report.json", report)
    return report


if __name__ == "__main__":
    run_by_hand(run)
