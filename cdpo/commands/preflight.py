"""The page that `cdpo prep` shows of every dataset and model before anything is trained on them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdpo.plan.graph import Plan
from cdpo.plan.lengths import lengths_name, root_data

#: pages that are shown; the file has all of them
MOST = 4
#: a share of pairs with the longer response chosen that is worth a word
BIASED = 0.65
#: and a share of unknown tokens
UNKNOWN = 0.01


def preflight_pages(plan: Plan, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was seen of each dataset under each model that is trained on it: see cdpo/data/looks.py."""
    pages: dict[str, dict[str, Any]] = {}
    for run in plan.runs:
        for step in (plan.steps[key] for key in run.steps):
            if "data" not in step.inputs or "max_length" not in step.params or step.unavailable:
                continue
            looks = found.get(lengths_name(plan, step), {}).get("looks")
            data = root_data(plan, step)
            identity = str([data.key, run.model, looks and looks["max_length"]])
            if looks is not None and identity not in pages:
                pages[identity] = {"dataset": run.dataset, "data": data.key, "model": run.model, **looks}
    return list(pages.values())


def preflight_lines(pages: Sequence[Mapping[str, Any]], place: Path) -> Iterator[str]:
    """The pages as text; `place` is the file that has them all."""
    for page in pages[:MOST]:
        yield from _page(page)
    if len(pages) > MOST:
        yield f"{len(pages) - MOST} more such pages in {place}"
    if pages:
        yield ""


def _page(page: Mapping[str, Any]) -> Iterator[str]:
    rows = ", ".join(f"{count} {split}" for split, count in page["rows"].items())
    yield f"{page['dataset']} for {page['model']}: {rows}"
    tokens = page["tokens"]
    spread = "; ".join(
        f"{called} {values[0]}, {values[1]}, {values[2]}"
        for name, called in (("prompt", "prompt"), ("response", "response"), ("row", "prompt with longer response"))
        if (values := tokens[name]) is not None
    )
    yield f"  tokens (median, 95 %, longest): {spread}; at most {page['max_length']}"
    if tokens["unknown"] > UNKNOWN:
        share = f"{tokens['unknown']:.0%}"
        yield (
            f"  WARNING: {share} of the tokens stand for text that this model's tokenizer does not know: nothing can "
            "be learned of it, whatever the figures say. Take another model for this data"
        )
    if page["dropped"]:
        causes = ", ".join(f"{count} {cause}" for cause, count in page["dropped"].items())
        share = sum(page["dropped"].values()) / page["rows"]["train"]
        yield f"  training leaves out {causes} ({share:.1%})"
    if tokens["chosen_longer"] is not None:
        said = f"  the chosen response is the longer one in {tokens['chosen_longer']:.0%} of {tokens['differ']} pairs"
        biased = not 1 - BIASED < tokens["chosen_longer"] < BIASED
        learned = "length" if tokens["chosen_longer"] > 0.5 else "brevity"
        yield said + (f": a policy may learn {learned} in place of quality" if biased else "")
    if page["repeated"]:
        yield f"  {page['repeated']} rows are there more than once"
    if page["shared_prompts"]:
        yield f"  {page['shared_prompts']} prompts of tune and eval are among the training prompts too"
    yield f"  a response ends with {page['end_token']}; what SFT learns stands between the marks:"
    yield from (f"  | {line}" for line in str(page["sample"]).splitlines())
