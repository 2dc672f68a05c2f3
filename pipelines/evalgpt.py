"""EVALGPT: let a judge model compare responses. Only its schema is here, so that the released tasks files plan."""

from cdpo.config.params import Count, NonNegative, Params
from cdpo.pipeline import Pipeline


class EVALGPTParams(Params):
    """Who judges, and how."""

    judge: str = "gpt-4"
    """The judge's name at its service."""
    temperature: NonNegative = 0.7
    top_p: NonNegative = 0.95
    max_tokens: Count = 1000
    """Tokens of a verdict at most."""


PIPELINE = Pipeline(
    name="EVALGPT",
    version=1,
    params=EVALGPTParams,
    takes={"responses": "responses"},
    gives="verdicts",
    rank=70,
    seeded=False,
    available=False,
)
