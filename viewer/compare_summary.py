"""Who is better: by one metric in words and as a bar, by all of them as a table; scores against each other."""

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from cdpo.report import side_by_side
from cdpo.report.overview import words
from cdpo.report.select import lower_is_better
from cdpo.report.side_by_side import NEUTRAL, SIDE_BY_SIDE
from cdpo.report.tables import number
from cdpo.viewer import charts, look, responses
from cdpo.viewer.compare_choices import COLOURS

#: more points than these are drawn as a density
MOST_POINTS = 2000

#: those that are asked first: what is nearest to the question who is better
FIRST = ("gold/mean", "reward/mean")
OF_TRAINING = ("loss", "rewards/accuracies", "rewards/margins", *NEUTRAL)


def in_words(metric: str) -> str:
    """What a metric is called on the page."""
    if metric.startswith(SIDE_BY_SIDE):
        return f"prompts won, by {metric}"
    return words(metric)


def in_order(compared: dict[str, dict[str, Any]]) -> list[str]:
    """The names of metrics: those first that are nearest to the question who is better, training's own last."""
    training = [name for name in compared if name in OF_TRAINING]
    return sorted(compared, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST) + (name in training))


def choose_metric(compared: dict[str, dict[str, Any]]) -> str:
    """The metric that everything below goes by."""
    names = in_order(compared)
    chosen = st.selectbox("Compared by", names, key="metric", bind="query-params", width=420)
    return str(chosen if chosen in compared else names[0])


def headline(metric: str, value: dict[str, Any], several: bool) -> None:
    """The verdict in words, and on how many prompts who has the higher value; `several`: of means over seeds."""
    what = f"of {in_words(metric)}" if metric.startswith(SIDE_BY_SIDE) else in_words(metric)
    told = responses.escaped(side_by_side.in_words(metric, value, what))
    # who reads no further knows what it is about: these trained models, not the methods
    told += f", {'of these seeds' if several else 'of this seed'}"
    st.subheader(told.replace("95 %", "95\N{NO-BREAK SPACE}%"), anchor=False)
    b, a = (value["losses"], value["wins"]) if lower_is_better(metric) else (value["wins"], value["losses"])
    ties = value["ties"]
    st.html(bar([("A", a), ("tie", ties), ("B", b)]))
    facts = [f"A {number(value['a_mean'])}, B {number(value['b_mean'])}", f"{value['n']:,} prompts"]
    if several:
        facts.append("each prompt by its mean over the seeds")
    if lower_is_better(metric):
        facts.insert(1, "lower is better")
    if value["p"] is not None:
        facts.append(f"p {p_value(value['p'])}")
    if value["unpaired"]:
        facts.append(f"{value['unpaired']:,} prompts that only one of them has are left out")
    facts.append(f"held fixed: {value['conditional_on']}")
    lines = [f"B minus A. {'; '.join(facts)}.", *_over_seeds(value), *_position(value)]
    st.caption("  \n".join(map(responses.escaped, lines)))


def _over_seeds(value: dict[str, Any]) -> list[str]:
    over = value["between_seeds"]
    if not over or over["low"] is None:
        return []
    low, high = (side_by_side.signed(over[end]) for end in ("low", "high"))
    told = "not resolved, " if over["low"] <= 0 <= over["high"] else ""
    return [f"Over seeds instead of prompts: {told}{low} to {high} (95 %, from {over['n']} seeds)."]


def _position(value: dict[str, Any]) -> list[str]:
    """How far a judge's verdicts hang on the order of the responses."""
    return [
        f"The judge said the same in both orders of {each['consistent']:.0%} of {each['pairs']:,} pairs; in both it "
        f"chose what stood first in {each['prefers_first']:.0%}, what stood second in {each['prefers_second']:.0%}."
        for each in value.get("position", ())
        if each.get("consistent") is not None
    ]


def p_value(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"


def bar(parts: list[tuple[str, int]]) -> str:
    """HTML of one bar of wins, ties and losses with their counts."""
    total = sum(count for _, count in parts) or 1
    names = {"A": "A wins", "B": "B wins", "tie": "ties"}
    cells = "".join(
        f'<div style="flex: {count}; background: {COLOURS[part]}; min-width: 2px"></div>'
        for part, count in parts
        if count
    )
    legend = "".join(
        f'<span><span style="color: {COLOURS[part]}">■</span> {names[part]} {count:,} ({count / total:.0%})</span>'
        for part, count in parts
    )
    return (
        f'<div style="display: flex; height: 1.1rem; border-radius: 4px; overflow: hidden; gap: 1px">{cells}</div>'
        '<div style="display: flex; justify-content: space-between; flex-wrap: wrap; gap: 0 1rem; '
        f'font-size: 0.92rem; margin-top: 0.3rem">{legend}</div>'
    )


def every_metric(compared: dict[str, dict[str, Any]], not_compared: dict[str, str]) -> None:
    """All metrics and judges with their verdicts."""
    rows = [
        {
            "by": in_words(name),
            "verdict": side_by_side.who(name, value),
            "A": value["a_mean"],
            "B": value["b_mean"],
            "B − A": value["difference"],
            "low": value["low"],
            "high": value["high"],
            "p": value["p"],
            "prompts": value["n"],
            "A higher": value["losses"],
            "equal": value["ties"],
            "B higher": value["wins"],
        }
        for name, value in ((each, compared[each]) for each in in_order(compared))
    ]
    shown = {name: st.column_config.NumberColumn(format="%.3f") for name in ("A", "B", "B − A")}
    ends = {"low": "95 % from", "high": "to"}
    shown |= {name: st.column_config.NumberColumn(label, format="%.3f") for name, label in ends.items()}
    shown["p"] = st.column_config.NumberColumn(format="%.2g", help="of the paired t test, each metric by itself")
    st.dataframe(pd.DataFrame(rows), hide_index=True, column_config=shown, height="content")
    for name, why in not_compared.items():
        st.caption(responses.escaped(f"{in_words(name)} is not compared: {why}."))


def scatter(table: pd.DataFrame, metric: str, beginnings: dict[str, str], under: str) -> None:
    """A's score against B's, prompt by prompt; beyond the diagonal B is higher. `under` which seed, or nothing."""
    both = table[["a", "b", "ahead"]].dropna()
    if both.empty:
        look.empty("No scores to draw", f"No prompt has {responses.escaped(in_words(metric))} in both runs.")
        return
    low, high = float(both[["a", "b"]].min().min()), float(both[["a", "b"]].max().max())
    margin = (high - low or 1.0) * 0.04
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False)
    name = in_words(metric)
    x = alt.X("a:Q", scale=scale, title=f"A: {name}")
    y = alt.Y("b:Q", scale=scale, title=f"B: {name}")
    many = len(both) > MOST_POINTS
    if many:
        x, y = x.bin(maxbins=50), y.bin(maxbins=50)
        colour = alt.Color("count():Q", scale=alt.Scale(scheme=charts.SEQUENTIAL, type="log"), title="prompts")
        points = alt.Chart(both[["a", "b"]]).mark_rect().encode(x=x, y=y, color=colour, tooltip=["count():Q"])
    else:
        both = both.assign(
            wins=both["ahead"].map(lambda ahead: "tie" if abs(ahead) <= 1e-6 else "B" if ahead > 0 else "A"),
            prompt=[responses.label(beginnings.get(each, each), 60) for each in both.index],
        )
        colour = alt.Color("wins:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), legend=None)
        tip = [
            alt.Tooltip("prompt:N"),
            alt.Tooltip("a:Q", title="A", format=".3f"),
            alt.Tooltip("b:Q", title="B", format=".3f"),
        ]
        points = alt.Chart(both).mark_circle(size=45, opacity=0.6).encode(x=x, y=y, color=colour, tooltip=tip)
    ends = pd.DataFrame({"a": scale.domain, "b": scale.domain})
    diagonal = (
        alt.Chart(ends).mark_line(color=COLOURS["tie"], strokeDash=[4, 4], strokeWidth=1).encode(x="a:Q", y="b:Q")
    )
    st.altair_chart((points + diagonal).properties(height=340), width="stretch")
    told = f"Each point is a prompt{under}; above the line B has the higher value."
    if many:
        told = f"{len(both):,} prompts{under}, counted in squares; above the line B has the higher value."
    st.caption(told)
