"""A user's own dataset rule: `fn(row: dict) -> dict | list[dict] | None`.

It is called with each raw row (column -> value) and returns a preference (`prompt`: a text or messages; `chosen`,
`rejected`: a text, or one message of the assistant in a list; other keys are kept as columns), several of them, or None
where the row is no preference. What it returns is checked as a source's own rows are.
"""

from collections.abc import Callable
from typing import Any

from cdpo.data.messages import shown
from cdpo.data.rules import RULES, Drop, FieldError, Pair

DROPPED_BY_RULE = "dropped by the rule"


def own_rule(reference: str) -> Callable[[dict[str, Any]], list[Pair | Drop]]:
    """The user's function named by `reference`, checked: it gives the row's pairs, or one Drop where there are none.

    The rule raises FieldError, naming the user's function, where that fails or returns something else.
    """
    from cdpo.plugins import load_plugin, said

    function = load_plugin(reference)

    def convert(row: dict[str, Any]) -> list[Pair | Drop]:
        try:
            made = function(dict(row))
        except Exception as error:
            raise FieldError(f"{reference} failed: {said(error, reference)}") from error
        pairs = [] if made is None else made if isinstance(made, list) else [made]
        return [_pair(each, reference) for each in pairs] or [Drop(DROPPED_BY_RULE)]

    return convert


def _pair(made: Any, reference: str) -> Pair | Drop:
    wanted = {"prompt", "chosen", "rejected"}
    if not isinstance(made, dict) or not wanted <= made.keys():
        raise FieldError(f"{reference} returned {shown(made)}, and not a dict with prompt, chosen and rejected")
    try:
        pair = RULES["preference"](made)
    except FieldError as error:
        raise FieldError(f"{reference} returned a wrong {error}") from error
    if isinstance(pair, Drop):
        return pair
    return {**{name: value for name, value in made.items() if name not in wanted}, **pair}
