"""What the judges of a plan would cost: lines for `cdpo plan`, by the texts that are there and the limits of those that
are not. Answers that are kept from earlier are not known before they are asked for, so it may be less."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdpo.config.judge_templates import PAIRWISE
from cdpo.config.judges import JudgeService
from cdpo.files import read_json_lines
from cdpo.judge.ledger import ledger_file
from cdpo.judge.reckoning import AROUND, CHARACTERS
from cdpo.plan.graph import Plan, PlannedStep

if TYPE_CHECKING:
    from cdpo.store import Store

#: rows of a file that are looked at for their lengths
SAMPLE = 1000
#: characters of a token, as most tokenizers have them in English
USUAL = 4.0


@dataclass(frozen=True)
class Texts:
    """How many prompts and responses there will be to compare, and about how long a prompt, a response and the other
    one are, in characters."""

    prompts: int
    responses: int
    prompt: float
    response: float
    other: float


def judge_lines(
    store: "Store", plan: Plan, todo: Sequence[PlannedStep], judges: Mapping[str, JudgeService]
) -> list[str]:
    """One line for each judge behind an API that a step of `todo` would ask."""
    lines = []
    for judge in dict.fromkeys(step.params["judge"] for step in todo if step.asks):
        verdicts, tokens, most, unknown = 0, 0.0, 0, 0
        for step in (each for each in todo if each.asks and each.params["judge"] == judge):
            texts = _texts(store, plan, step)
            if texts is None:
                unknown += 1
                continue
            orders = 2 if (step.params.get("judge_template") or {}).get("verdict") in PAIRWISE else 1
            # a limit is one of prompts, and all responses to each of them are judged
            kept = min(texts.prompts, step.params.get("limit") or texts.prompts)
            asked = orders * texts.responses * kept // max(texts.prompts, 1)
            verdicts += asked
            tokens += asked * _tokens(step.params, texts)
            most += asked * step.params["max_tokens"]
        lines.append(_line(store, judge, judges.get(judge), verdicts, tokens, most, unknown))
    return lines


def _tokens(params: Mapping[str, Any], texts: Texts) -> float:
    """Of one question."""
    template = params["judge_template"]
    said = len(template["prompt"]) + len(template["system"] or "") + texts.prompt + texts.response
    return (said + (texts.other if template["verdict"] in PAIRWISE else 0.0)) / USUAL + 2 * AROUND


def _line(
    store: "Store", judge: str, service: JudgeService | None, verdicts: int, tokens: float, most: int, unknown: int
) -> str:
    if not verdicts:
        return f"judge {judge}: what {unknown} {'step' if unknown == 1 else 'steps'} would ask is not known yet"
    past = list(read_json_lines(ledger_file(store.root, judge)))
    said = f"judge {judge}: about {verdicts:,} verdicts"
    if unknown:
        said += f" and those of {unknown} steps whose responses cannot be counted yet"
    if service is None or service.prices is None:
        cost = ", at no price that devices.yaml tells" if service is not None else ""
        return f"{said}, {tokens / 1e6:.2g} M tokens asked and at most {most / 1e6:.2g} M answered{cost}"
    highest = service.prices.of(tokens * USUAL / CHARACTERS, most)
    said += f", at most ${highest:,.2f}"
    if past:
        usual = sum(each["completion_tokens"] for each in past) / len(past)
        said += f", about ${service.prices.of(tokens, verdicts * usual):,.2f} by its answers so far"
    spent = sum(each["dollars"] or 0.0 for each in past)
    if service.budget is not None:
        said += f"; ${spent:,.2f} of ${service.budget:,.2f} are spent"
    elif spent:
        said += f"; ${spent:,.2f} are spent, and there is no budget"
    return said


def _texts(store: "Store", plan: Plan, step: PlannedStep) -> Texts | None:
    """What a step will show its judge; None where it is not known yet how much."""
    answering = [plan.steps[given["step"]] for role, given in step.inputs.items() if _answers(plan, given)]
    if not answering:
        return None
    sizes = [_answered(store, plan, each) for each in answering]
    if any(size is None for size in sizes):
        return None
    known = [size for size in sizes if size is not None]
    other = known[1].response if len(known) > 1 else known[0].other
    fewest = min(known, key=lambda size: size.responses)
    return Texts(fewest.prompts, fewest.responses, known[0].prompt, known[0].response, other)


def _answers(plan: Plan, given: Mapping[str, Any]) -> bool:
    return "step" in given and plan.steps[given["step"]].pipeline == "GEN"


def _answered(store: "Store", plan: Plan, step: PlannedStep) -> Texts | None:
    """The responses of a GEN step, or those that it will make."""
    import pyarrow.parquet as pq

    folder = store.find(step.key)
    if folder is not None:
        file = pq.ParquetFile(folder / "out" / "responses.parquet")
        rows = next(file.iter_batches(SAMPLE, columns=["prompt", "chosen", "response"])).to_pylist()
        return Texts(
            len(file.read(columns=["prompt_id"])["prompt_id"].unique()),
            file.metadata.num_rows,
            _mean([sum(len(each["content"]) for each in row["prompt"]) for row in rows]),
            _mean([len(row["response"]) for row in rows]),
            _mean([sum(len(each["content"]) for each in row["chosen"] or []) for row in rows]),
        )
    data = store.find(step.inputs["data"]["step"]) if "step" in step.inputs["data"] else None
    path = data / "out" / f"{step.params['split']}.parquet" if data is not None else Path()
    if not path.is_file():
        return None
    file = pq.ParquetFile(path)
    columns = [name for name in ("prompt", "chosen") if name in file.schema_arrow.names]
    rows = next(file.iter_batches(SAMPLE, columns=columns)).to_pylist()
    samples = step.params["samples"]
    each = samples if isinstance(samples, int) else sum(draw["k"] for draw in samples)
    prompts = min(file.metadata.num_rows, step.params["limit"] or file.metadata.num_rows)
    return Texts(
        prompts,
        prompts * each,
        _mean([sum(len(part["content"]) for part in row["prompt"]) for row in rows]),
        USUAL * step.params["max_new_tokens"],
        _mean([sum(len(part["content"]) for part in row.get("chosen") or []) for row in rows]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
