"""Two runs prompt by prompt: scores, lengths, and what judges said; who wins where, and where they disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdpo.files import reading_parquet
from cdpo.report.groups import Group
from cdpo.report.reading import Match, RunScores
from cdpo.report.side_by_side import SIDE_BY_SIDE, better_sign
from cdpo.stats.paired import TIE
from cdpo.store import Store

if TYPE_CHECKING:
    import pandas as pd

#: which prompts are shown
FILTERS = {
    "all": "all",
    "A wins": "a_wins",
    "B wins": "b_wins",
    "tie": "tied",
    "verdicts disagree": "judges_disagree",
    "reward and judge disagree": "reward_judge",
    "no verdict": "unjudged",
    "one is missing": "missing",
    "cut off": "cut",
}
#: the order in which they are shown -> the column that is sorted by, and whether from the highest down
ORDERS = {
    "as in the data": None,
    "B furthest ahead": ("ahead", False),
    "A furthest ahead": ("ahead", True),
    "longest": ("longest", False),
    "most different words": ("different", False),
}


def seeds(a: Group, b: Group) -> list[int]:
    """The seeds under which the responses of both can be shown; the first of each where they have none in common."""
    shared = [run.seed for run in a.runs if run.seed in {other.seed for other in b.runs}]
    return shared or [a.runs[0].seed]


def of_seed(group: Group, seed: int) -> RunScores:
    """The run of that seed, or the first."""
    return next((run for run in group.runs if run.seed == seed), group.runs[0])


def answers(run: RunScores) -> Path | None:
    """The parquet file of the run's responses; None where nothing was generated."""
    folders = [folder for gives, folder in run.folders if gives == "responses"]
    return folders[-1] / "out" / "responses.parquet" if folders else None


def by_prompt(store: Store, a: RunScores, b: RunScores, metric: str | None, matches: Sequence[Match]) -> "pd.DataFrame":
    """One row for each prompt that either run answered (or has the metric of), in the order of the data; the index is
    the prompt_id.

    Columns: `a`, `b` (the metric, or whether a judge gave the prompt to it: 1, 0.5, 0; NaN for none), `difference`
    (b - a), `ahead` (by how much b is better), `tokens_a`, `tokens_b` (of all responses to the prompt), `longest`,
    `samples`, `judged` (1 where a judge says b, -1 for a, 0 for a tie, NaN for no verdict), and of truth values
    `a_wins`, `b_wins`, `tied`, `judges_disagree` (one in its two orders, or two of them), `reward_judge` (the metric,
    or a reward where it is none, says otherwise than the judge), `missing` (one has no value, or no response),
    `unjudged` (no verdict, where other prompts have one), `cut` (a response that the limit of its length cut off).
    """
    import pandas as pd

    tables = [_lengths(run) for run in (a, b)]
    values = [_values(run, metric) for run in (a, b)]
    ids = dict.fromkeys([*tables[0].index, *tables[1].index] or [*values[0].index, *values[1].index])
    table = pd.DataFrame(index=pd.Index(list(ids), name="prompt_id"))
    for side, lengths, value in zip("ab", tables, values, strict=True):
        table[side] = value.reindex(table.index)
        table[f"tokens_{side}"] = lengths["tokens"].reindex(table.index)
        table[f"cut_{side}"] = lengths["cut"].reindex(table.index).fillna(0) > 0
        table[f"samples_{side}"] = lengths["samples"].reindex(table.index).fillna(0).astype(int)
    table["difference"] = table["b"] - table["a"]
    table["ahead"] = better_sign(metric or "") * table["difference"]
    table["longest"] = table[["tokens_a", "tokens_b"]].max(axis=1)
    table["samples"] = table[["samples_a", "samples_b"]].max(axis=1)
    table["cut"] = table["cut_a"] | table["cut_b"]
    judged = judgings(store, a, b, matches)
    side_by_side = [each for each in judged if each.side_by_side]
    outcomes = {each: each.outcomes() for each in side_by_side or judged}
    _add_judged(table, list(outcomes.values()))
    if metric is not None and metric.startswith(SIDE_BY_SIDE):
        own = [found for each, found in outcomes.items() if f"{SIDE_BY_SIDE}{each.judge}" == metric]
        table["ahead"] = own[0]["outcome"].reindex(table.index) if own else np.nan
        table["a"] = table["b"] = table["ahead"].where(table["ahead"].isna(), 0.5)
        table["a"], table["b"] = table["a"] - table["ahead"] / 2, table["b"] + table["ahead"] / 2
        table["difference"] = table["ahead"]
    table["a_wins"], table["b_wins"] = table["ahead"] < -TIE, table["ahead"] > TIE
    table["tied"] = table["ahead"].abs() <= TIE
    reward = reward_of(a, b, metric)
    by_reward = table["ahead"] if reward == metric else (_values(b, reward) - _values(a, reward)).reindex(table.index)
    table["reward_judge"] = by_reward.where(by_reward.abs() > TIE, 0) * table["judged"] < 0
    answered = (table["samples_a"] > 0) & (table["samples_b"] > 0) if len(tables[0]) or len(tables[1]) else True
    table["missing"] = table[["a", "b"]].isna().any(axis=1) & (metric is not None) | ~answered
    return table


def _lengths(run: RunScores) -> "pd.DataFrame":
    """By prompt: how many responses there are, how many tokens they have, and how many were cut off."""
    import pandas as pd

    file = answers(run)
    if file is None:
        return pd.DataFrame({"samples": [], "tokens": [], "cut": []}, index=pd.Index([], dtype=object))
    with reading_parquet(file) as opened:
        table = opened.read(["prompt_id", "response_tokens", "finish_reason"], use_threads=False)
    rows = pd.DataFrame(
        {
            "samples": 1,
            "tokens": table["response_tokens"].to_numpy(),
            "cut": table["finish_reason"].to_numpy() == "length",
        },
        index=table["prompt_id"].to_pylist(),
    )
    return rows if rows.index.is_unique else rows.groupby(level=0, sort=False).sum()


def _values(run: RunScores, metric: str | None) -> "pd.Series":
    import pandas as pd

    of = run.metrics.get(metric or "")
    if of is None:
        return pd.Series([], index=pd.Index([], dtype=object), dtype=float)
    return pd.Series(of.column.values, index=list(of.column.ids))


def reward_of(a: RunScores, b: RunScores, metric: str | None) -> str | None:
    """`metric` if it is a reward, else the first reward that both have."""
    rewards = [name for name, of in a.metrics.items() if of.kind in ("reward/mean", "gold/mean") and name in b.metrics]
    return metric if metric in rewards else next(iter(rewards), None)


def _add_judged(table: "pd.DataFrame", outcomes: "Sequence[pd.DataFrame]") -> None:
    table["judged"] = np.nan
    table["judges_disagree"] = False
    says_a, says_b = (np.zeros(len(table), dtype=bool) for _ in range(2))
    for each in outcomes:
        here = each.reindex(table.index)
        table["judged"] = table["judged"].fillna(here["outcome"])
        says_a |= (here["outcome"] < 0).to_numpy()
        says_b |= (here["outcome"] > 0).to_numpy()
        table["judges_disagree"] |= here["orders_differ"].fillna(0) > 0
    table["judges_disagree"] |= says_a & says_b
    table["unjudged"] = table["judged"].isna() & table["judged"].notna().any()


@dataclass(frozen=True)
class Judging:
    """What one judge was asked about two runs: about both at once, or of each against the data's chosen responses (or
    by itself)."""

    judge: str
    #: the finished steps: one of both runs, or one of each
    folders: tuple[Path, ...]
    #: of one step of both: whether `a` is what the step calls first
    a_first: bool = True

    @property
    def side_by_side(self) -> bool:
        return len(self.folders) == 1

    def outcomes(self) -> "pd.DataFrame":
        """By prompt: `outcome` (1: b, -1: a, 0: neither; NaN for no verdict) and `orders_differ` (0 or 1)."""
        import pandas as pd

        scores = [_scores(folder) for folder in self.folders]
        one, other = scores if len(scores) > 1 else (scores[0], 1 - scores[0])
        ahead = other - one if self.a_first else one - other
        outcome = np.sign(ahead.where(ahead.abs() > TIE, 0).where(ahead.notna()))
        differ = pd.concat([_orders_differ(folder) for folder in self.folders], axis=1).max(axis=1)
        return pd.DataFrame({"outcome": outcome, "orders_differ": differ})


def judgings(store: Store, a: RunScores, b: RunScores, matches: Sequence[Match]) -> list[Judging]:
    """Who judged two runs: first those who saw both at once."""
    found = [
        Judging(each.judge, (each.folder,), each.first == a.answers)
        for each in matches
        if {each.first, each.second} == {a.answers, b.answers} and a.answers != b.answers
    ]
    of_each = [verdict_steps(store, run) for run in (a, b)]
    found += [
        Judging(judge, (folder, of_each[1][judge])) for judge, folder in of_each[0].items() if judge in of_each[1]
    ]
    return found


def verdict_steps(store: Store, run: RunScores) -> dict[str, Path]:
    """Judge -> the step in which it judged the run's responses by themselves or against the data's chosen ones."""
    folders = [folder for gives, folder in run.folders if gives == "verdicts"]
    return {str(store.manifest(folder)["params"]["judge"]): folder for folder in folders}


#: columns of what a judge's step leaves, of which it has one
JUDGED = ("judge_win", "judge_win_chosen", "judge_rating")


def _scores(folder: Path) -> "pd.Series":
    import pandas as pd

    with reading_parquet(folder / "out" / "scores.parquet") as file:
        name = next(each for each in JUDGED if each in file.schema_arrow.names)
        table = file.read(columns=["prompt_id", name], use_threads=False)
    return pd.Series(table[name].to_numpy().astype(float), index=table["prompt_id"].to_pylist())


def _orders_differ(folder: Path) -> "pd.Series":
    """By prompt, 1.0 where a pair of responses was judged otherwise when its places changed."""
    with reading_parquet(folder / "out" / "verdicts.parquet") as file:
        table = file.read(["prompt_id", "sample", "order", "verdict"], use_threads=False).to_pandas()
    worth = table["verdict"].map({"first": 1.0, "tie": 0.0, "second": -1.0}).astype(float)
    table["worth"] = worth.where(table["order"] != 1, -worth)
    table = table[table["order"].notna() & table["worth"].notna()]
    pairs = table.groupby(["prompt_id", "sample"], sort=False)["worth"].agg(["min", "max"])
    return (pairs["min"] != pairs["max"]).astype(float).groupby(level=0, sort=False).max()
