"""What a prepared dataset looks like, as it is and under a model's tokenizer: what `cdpo prep` shows before hours of
training.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cdpo.data.measure import Tokens
from cdpo.data.messages import canonical
from cdpo.data.tokens import end_token_id

Rows = Sequence[Mapping[str, Any]]

#: around what a sample row is trained on
OPEN, CLOSE = "«", "»"
#: characters of a sample that are shown, from its beginning and its end
SHOWN = 1200


def looks(splits: Mapping[str, Rows]) -> dict[str, Any]:
    """Of the rows as they are: {"rows": by split, "repeated": rows that are there before word for word, "shared
    prompts": distinct prompts of `tune` and `eval` that are in `train` too}."""
    seen: Counter[str] = Counter()
    prompts: dict[str, set[str]] = {}
    for split, rows in splits.items():
        prompts[split] = set()
        for row in rows:
            prompt = canonical(row["prompt"])
            prompts[split].add(prompt)
            seen[str((prompt, _content(row["chosen"]), _content(row["rejected"])))] += 1
    held_out = set().union(*(found for split, found in prompts.items() if split != "train"))
    return {
        "rows": {split: len(rows) for split, rows in splits.items()},
        "repeated": seen.total() - len(seen),
        "shared_prompts": len(held_out & prompts.get("train", set())),
    }


def _content(turn: Any) -> str:
    return str(turn[0]["content"]) if turn else ""


def lengths(tokens: Sequence[Tokens | None]) -> dict[str, Any]:
    """Of rows in tokens: {"prompt", "response", "row": [median, 95th percentile, longest]}, and for pairs
    {"chosen_longer": the share of pairs, among those that differ in length, whose chosen response is the longer one;
    "differ": how many do}; "unknown": the share of all tokens that stand for text which the tokenizer does not know."""
    known = [each for each in tokens if each is not None]
    responses = [side for each in known for side in (each.chosen, each.rejected) if side is not None]
    found: dict[str, Any] = {"prompt": _spread([each.prompt for each in known])}
    found["response"] = _spread(responses)
    found["row"] = _spread([each.longest for each in known])
    differ = [each for each in known if each.rejected is not None and each.chosen != each.rejected]
    longer = sum((each.chosen or 0) > (each.rejected or 0) for each in differ)
    found |= {"chosen_longer": longer / len(differ) if differ else None, "differ": len(differ)}
    total = sum(each.prompt + (each.chosen or 0) + (each.rejected or 0) for each in known)
    return {**found, "unknown": sum(each.unknown for each in known) / total if total else 0.0}


def _spread(counts: Sequence[int]) -> list[int] | None:
    """The median, the 95th percentile (both of the values themselves), and the largest."""
    if not counts:
        return None
    ordered = sorted(counts)
    return [ordered[(len(ordered) - 1) * percent // 100] for percent in (50, 95, 100)]


def sample(row: Mapping[str, Any], tokenizer: Any) -> str:
    """A row as the model reads it, what SFT learns of it between OPEN and CLOSE; cut in the middle where it is long."""
    from cdpo.data.tokens import encode, encode_prompt

    if row["chosen"] is None:
        text = tokenizer.decode(encode_prompt(tokenizer, row["prompt"]))
    else:
        prompt, response = encode(tokenizer, row["prompt"], row["chosen"])
        text = f"{tokenizer.decode(prompt)}{OPEN}{tokenizer.decode(response)}{CLOSE}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} ... {text[-SHOWN // 2 :]}"


def end_token(tokenizer: Any) -> str:
    """The token that ends a response, as text."""
    return str(tokenizer.convert_ids_to_tokens(end_token_id(tokenizer)))
