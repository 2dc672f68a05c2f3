"""PREP: raw rows become preference pairs in messages, split into train, tune and eval.

out/<split>.parquet: `prompt_id, prompt, chosen, rejected` and what else the source gave (see cdpo/data/prepared.py);
`rejected` is null in data to imitate, and `chosen` too in prompts alone.
out/report.json: the format, rows read, rows kept by split, rows dropped by cause, and where the first of each cause
stand.

Rows that are of no use are dropped, counted by cause, and refused when they are too many. All rows of a
prompt go to one split. Order, limit and splits follow from hashes of the rows' content and the seed: the order of the
source's rows and files changes nothing, and the first rows of a split are a fair sample of it.
"""

import difflib
import gc
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from cdpo.config.params import Count, Fraction, Params
from cdpo.errors import StepError
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand

#: a share of rows that a split takes; a split is never empty
Ratio = Annotated[float, Field(gt=0, lt=1)]
#: how many places of dropped rows the report names per cause
EXAMPLES = 5
#: the rule is chosen by what the source's first row looks like
AUTO = "auto"
#: stands for the function that the input `rule_plugin` names
OWN_RULE = "plugin"


class PlaygroundSizes(Params):
    """Prompts of the playground by split."""

    train: Count = 2000
    tune: Count = 200
    eval: Count = 500


class PrepParams(Params):
    """How a source becomes a prepared dataset."""

    rule: str = AUTO
    """A rule of cdpo/data/rules.py by name (`preference`, `sft`, `prompts`, `AH`, ...), `playground`, a user's own
    (`./my.py:fn`; the step's parameter is then `plugin`, and the function an input), or `auto`: by the columns of the
    source's first row."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names that the rule reads, and the source's columns that they stand for: `{prompt: question, chosen: good}`."""
    eval_ratio: Ratio = 0.1
    """Share of the rows that goes to `eval`, where the dataset has no files of its own for it."""
    tune_ratio: Ratio = 0.05
    """Share of the rows that goes to `tune`."""
    limit: Count | None = None
    """Take so many usable rows of the source, drawn at random; a file for `eval` is taken whole."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Of the splits, the limit and the playground; the same for all runs, so that they share the data."""
    max_dropped: Fraction = 0.05
    """The share of rows that may be unusable before the dataset is refused."""
    playground: PlaygroundSizes = PlaygroundSizes()

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        from cdpo.data.rules import RULES

        known = [*RULES, "playground", AUTO]
        if rule == OWN_RULE or rule in known:
            return rule
        near = difflib.get_close_matches(rule, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}, or ./FILE.py:FUNCTION"
        raise ValueError(f"no rule {rule!r} ({hint})")


PIPELINE = Pipeline(
    name="PREP",
    version=2,
    params=PrepParams,
    takes={"source": "source"},
    gives="data",
    rank=10,
    seeded=False,
)


@dataclass
class Read:
    """What the rule made of one group of source files."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    #: cause -> the first places of rows dropped for it
    examples: dict[str, list[str]] = field(default_factory=dict)


def run(step: Step) -> dict[str, Any]:
    # rows are millions of small objects without cycles: collections would only go through them, again and again
    gc.disable()
    try:
        return _run(step)
    finally:
        gc.enable()


def _run(step: Step) -> dict[str, Any]:
    from cdpo.data.prepared import SPLITS, write_split
    from cdpo.files import write_json

    params = PrepParams(**step.params)
    if params.rule == "playground":
        from cdpo.data.playground import make

        sizes = params.playground
        splits = make(sizes.train, sizes.tune, sizes.eval, params.seed)
        report: dict[str, Any] = {"rule": params.rule, "format": "preference", "read": {}, "dropped": {}}
    else:
        splits, report = from_source(step, params)
    report["kept"] = {split: len(splits[split]) for split in SPLITS}
    for split in SPLITS:
        write_split(step.out, split, splits[split])
    write_json(step.out / "report.json", report)
    return {name: value for name, value in report.items() if name != "dropped_at"}


def from_source(step: Step, params: PrepParams) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The rows by split, and the report."""
    from cdpo.data.rules import FORMATS

    if not step.has("source"):
        raise StepError(f"the rule {params.rule!r} reads files, and the dataset names none; give it `path: FILE`")
    name, convert, columns = rule_of(step, params)
    reads = {
        role: read(step, step.input_files(role), convert, params, columns)
        for role in ("source", "source_eval")
        if step.has(role)
    }
    splits = split_rows(
        limited(reads["source"].rows, params.limit, params.seed),
        params,
        evaluation=shuffled(reads["source_eval"].rows, params.seed) if "source_eval" in reads else None,
    )
    report: dict[str, Any] = {
        "rule": name,
        "format": name if name in FORMATS else "preference",
        "read": {role: each.count for role, each in reads.items()},
        "dropped": dict(sorted(sum((each.dropped for each in reads.values()), Counter[str]()).items())),
        "dropped_at": {role: each.examples for role, each in reads.items() if each.examples},
    }
    if "source_eval" in reads:
        # the file's own split is kept, and the overlap said aloud
        shared = {_identity(row) for row in splits["eval"]} & {_identity(row) for row in splits["train"]}
        if shared:
            report["prompts_in_train_and_eval"] = len(shared)
            step.note(f"{len(shared)} prompts of the evaluation file are among the training prompts too")
    for cause, count in report["dropped"].items():
        step.note(f"dropped {count} rows: {cause}")
    return splits, report


def rule_of(step: Step, params: PrepParams) -> tuple[str, Callable[[dict[str, Any]], Any], Sequence[str]]:
    """The rule's name, the rule as a function, and the columns that it needs."""
    from cdpo.data.rules import RULES, FieldError, detect
    from cdpo.data.sources import read_rows

    name = params.rule
    if name == OWN_RULE:
        from cdpo.data.own_rule import own_rule

        reference = step.inputs["rule_plugin"]
        assert isinstance(reference, str)
        return name, own_rule(reference), ()
    if name == AUTO:
        first = next(read_rows(step.input_files("source")))
        try:
            name = detect(_renamed(first.values, params.columns))
        except FieldError as error:
            raise StepError(f"{first.file}: {error}") from error
        step.note(f"rule: {name}, by the columns of {first.file.name}")
    return name, RULES[name], RULES[name].columns


def read(
    step: Step,
    files: Sequence[Path],
    convert: Callable[[dict[str, Any]], Any],
    params: PrepParams,
    columns: Sequence[str],
) -> Read:
    """Read and convert all rows; refused with causes and places where too many are unusable, or none is left."""
    from cdpo.data.rules import Drop, FieldError
    from cdpo.data.sources import read_rows

    sources = list(read_rows(files, [params.columns.get(name, name) for name in columns]))
    result = Read(count=len(sources))
    for done, source in enumerate(sources, start=1):
        step.progress(done, len(sources), unit="rows")
        values = _renamed(source.values, params.columns)
        try:
            made = convert(values)
        except FieldError as error:
            raise StepError(f"{source.place}: {error}") from error
        for each in made if isinstance(made, list) else [made]:
            if isinstance(each, Drop):
                result.dropped[each.cause] += 1
                places = result.examples.setdefault(each.cause, [])
                if len(places) < EXAMPLES:
                    places.append(f"{source.file.name}:{source.number}")
            else:
                result.rows.append(_with_extras(each, values, convert))
    _refuse_too_many(result, files, params.max_dropped)
    return result


def _renamed(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """A source's row under the names that the rule reads."""
    if not columns:
        return values
    taken = set(columns.values())
    rest = {name: value for name, value in values.items() if name not in taken and name not in columns}
    return {**rest, **{name: values[column] for name, column in columns.items() if column in values}}


def _refuse_too_many(result: Read, files: Sequence[Path], max_dropped: float) -> None:
    from cdpo.data.own_rule import DROPPED_BY_RULE
    from cdpo.data.rules import BY_CHOICE

    unusable = result.dropped.total() - sum(result.dropped[cause] for cause in (DROPPED_BY_RULE, *BY_CHOICE))
    total = len(result.rows) + unusable
    share = unusable / total if total else 1.0
    if result.rows and share <= max_dropped:
        return
    causes = "; ".join(
        f"{count} {cause} (first at {result.examples[cause][0]})" for cause, count in sorted(result.dropped.items())
    )
    name = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    said = f"{unusable} of {total} rows ({share:.1%}) are no usable preferences: {causes}"
    if not result.rows:
        raise StepError(f"{name}: {said}. Nothing is left; is it the right rule?")
    raise StepError(
        f"{name}: {said}. At most {max_dropped:.1%} may be: mend the file, or raise max_dropped in the dataset's entry"
    )


def _with_extras(pair: dict[str, Any], values: dict[str, Any], convert: Any) -> dict[str, Any]:
    """The pair and the columns of its source row that the rule did not read."""
    from cdpo.data.prepared import COLUMNS
    from cdpo.data.rules import Rule

    used = {*convert.columns, *convert.optional} if isinstance(convert, Rule) else set(COLUMNS) - {"prompt_id"}
    extras = {
        f"source_{name}" if name in COLUMNS else name: value for name, value in values.items() if name not in used
    }
    named = {f"source_{name}" if name == "prompt_id" else name: value for name, value in pair.items()}
    return {**extras, **named}


def limited(rows: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """The rows in the seed's order, at most `limit` of them."""
    return shuffled(rows, seed)[:limit]


def shuffled(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The rows in an order that only their content and the seed decide."""
    return sorted(rows, key=lambda row: _rank(seed, "row", json.dumps([row["prompt"], row["chosen"], row["rejected"]])))


def split_rows(
    rows: list[dict[str, Any]], params: PrepParams, evaluation: list[dict[str, Any]] | None
) -> dict[str, list[dict[str, Any]]]:
    """`rows` cut into train, tune and eval by prompt; `eval` is `evaluation` where that is given. No split is empty."""
    groups: dict[str, list[dict[str, Any]]] = {}
    identities = [_identity(row) for row in rows]
    for identity, row in zip(identities, rows, strict=True):
        groups.setdefault(identity, []).append(row)
    wanted = (
        {"tune": params.tune_ratio}
        if evaluation is not None
        else {"eval": params.eval_ratio, "tune": params.tune_ratio}
    )
    if len(groups) <= len(wanted):
        raise StepError(
            f"{len(rows)} usable rows of {len(groups)} prompts cannot be split into train, {' and '.join(wanted)}: "
            f"every split needs a prompt of its own"
        )
    order = iter(sorted(groups, key=lambda identity: _rank(params.seed, "split", identity)))
    place: dict[str, str] = {}
    left = len(groups)
    for later, (split, ratio) in enumerate(wanted.items(), start=1):
        count = 0
        # one prompt stays for each split that is still to come, train being the last
        while count < max(1, round(ratio * len(rows))) and left > len(wanted) - later + 1:
            identity = next(order)
            place[identity] = split
            count += len(groups[identity])
            left -= 1
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "tune": [], "eval": []}
    for identity, row in zip(identities, rows, strict=True):
        splits[place.get(identity, "train")].append(row)
    if evaluation is not None:
        splits["eval"] = evaluation
    return splits


def _identity(row: dict[str, Any]) -> str:
    from cdpo.data.messages import canonical

    return canonical(row["prompt"])


def _rank(seed: int, purpose: str, text: str) -> str:
    return hashlib.sha256(f"{seed}\x1f{purpose}\x1f{text}".encode()).hexdigest()


if __name__ == "__main__":
    run_by_hand(run)
