"""The training curves of the page Curves: what is chosen, and the charts, which follow trainings that go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import streamlit as st

from cdpo.errors import DamagedFile
from cdpo.plan.names import count
from cdpo.report.curves import SPREADS, Log, Training
from cdpo.report.tables import number
from cdpo.store import Store
from cdpo.viewer import charts, choices, curves_chart, curves_data, data, look
from cdpo.viewer.curves_chart import EACH, EPOCH, STEP, Drawn
from cdpo.viewer.curves_data import Line

#: configurations that are shown unasked, and lines that are drawn at most
RECENT, MOST_LINES = 6, 30
#: seconds between two looks at trainings that go on
LIVE = 5.0
#: the stage that each run is about
OWN = "the method itself"
#: metrics that come first among those to choose from
FIRST = ("loss", "rewards/accuracies", "rewards/margins", "accuracy", "margin", "eval_loss", "eval_rewards/accuracies",
         "eval_rewards/margins")  # fmt: skip
SMOOTHING = 0.6


@dataclass(frozen=True)
class Wanted:
    metrics: list[str]
    x: str
    spread: str
    weight: float


def page(root: str) -> None:
    lines = curves_data.lines(root, choices.tags())
    if not lines:
        look.empty("No runs yet.", "This executes the experiments of configs/tasks.yaml:", "cdpo execute")
        return
    by_label = {line.label: line for line in lines}
    wide, narrow = st.columns([5, 2], vertical_alignment="bottom")
    with wide:
        names = st.multiselect(
            "Configurations and runs",
            list(by_label),
            key="runs",
            bind="query-params",
            placeholder=f"the {RECENT} that trained last",
            wrap=True,
            help="A configuration is drawn with a band over its seeds. Results has a table to pick them from.",
        )
    recent = [] if names else curves_data.recent(root, choices.tags(), RECENT)
    if not names and data.is_busy(Store(Path(root))):
        st.fragment(_follow, run_every=LIVE)(root, recent)
    chosen = [by_label[name] for name in names or recent]
    every = curves_data.trainings(root, chosen)
    if not every:
        look.empty("No curves yet.", "None of these has begun to train. This says what is under way:", "cdpo status")
        return
    with narrow:
        stage = _stage(chosen, every)
    drawn = _of_stage(chosen, every, stage)
    if len(drawn) > MOST_LINES:
        st.info(f"The first {MOST_LINES} of {len(drawn)} lines are drawn; choose fewer to see the others.")
        drawn = dict(list(drawn.items())[:MOST_LINES])
    if not drawn:
        look.empty("No curves yet.", f"None of these has logged anything of {stage}.", "cdpo status")
        return
    live = any(each.state == "training" for found in drawn.values() for each in found)
    wanted = _choose(_read(drawn))
    # only what may change is drawn anew; the choices above stay as they are
    st.fragment(_draw, run_every=LIVE if live else None)(root, chosen, stage, list(drawn), wanted)


def _follow(root: str, shown: list[str]) -> None:
    """Draw the page anew when another configuration begins to train."""
    if curves_data.recent(root, choices.tags(), RECENT) != shown:
        st.rerun()


def _stage(chosen: Sequence[Line], every: Sequence[Training]) -> str:
    """Whose training is shown: the method's own, or that of another step, such as its reward model's."""
    methods = {ref["method"] for line in chosen for ref in line.refs}
    other = [name for name in dict.fromkeys(each.stage for each in every) if methods != {name}]
    return st.selectbox("Training of", [OWN, *other], key="stage", bind="query-params") or OWN


def _of_stage(chosen: Sequence[Line], every: Sequence[Training], stage: str) -> dict[str, list[Training]]:
    """The name of each line -> its trainings. Lines that share them, as of one reward model, are one line."""
    by_run: dict[str, list[Training]] = {}
    for each in every:
        by_run.setdefault(each.run, []).append(each)
    names = curves_data.labels(chosen)
    found: dict[frozenset[str], tuple[list[str], list[Training]]] = {}
    for name, line in zip(names, chosen, strict=True):
        method = line.row.setup["method"]
        own = [
            each
            for run in line.row.runs
            for each in by_run.get(run, ())
            if each.stage == (method if stage == OWN else stage)
        ]
        own = list({each.key: each for each in own}.values())
        if own:
            found.setdefault(frozenset(each.key for each in own), ([], own))[0].append(name)
    return {
        f"{sharing[0]} and {len(sharing) - 1} more" if len(sharing) > 1 else sharing[0]: own
        for sharing, own in found.values()
    }


def _read(drawn: Mapping[str, Sequence[Training]]) -> dict[str, dict[Training, Log]]:
    """The logs; what is damaged is told and left out."""
    found: dict[str, dict[Training, Log]] = {}
    for name, trainings in drawn.items():
        found[name] = {}
        for each in trainings:
            try:
                found[name][each] = curves_data.log(each)
            except (DamagedFile, FileNotFoundError) as error:  # or it was published this moment, under another name
                st.warning("The curves of one training cannot be read; it is left out.", icon=":material/warning:")
                st.code(str(error), language=None, wrap_lines=True)
    return found


def _choose(logs: Mapping[str, Mapping[Training, Log]]) -> Wanted:
    """The row of controls."""
    known = list(dict.fromkeys(name for of in logs.values() for log in of.values() for name in log.metrics))
    known.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    several = any(len(of) > 1 for of in logs.values())
    first, second, third, fourth = st.columns([5, 2, 3, 3], vertical_alignment="bottom")
    with first:
        metrics = st.multiselect(
            "Metrics", known, default=known[:2], key="curve", bind="query-params", placeholder="choose one"
        )
    with second:
        x = st.segmented_control("Over", [STEP, EPOCH], default=STEP, required=True, key="x", bind="query-params")
    with third:
        spread = st.selectbox(
            "Band over seeds", [*SPREADS, EACH], key="band", bind="query-params", disabled=not several
        )
    with fourth:
        weight = st.slider(
            "Smoothing", 0.0, 0.99, SMOOTHING, 0.01, key="smooth", bind="query-params",
            help="An exponential moving average with its bias divided out, as in TensorBoard and wandb; of each seed "
            "by itself, before they are joined. 0: as it was logged.",
        )  # fmt: skip
    return Wanted(metrics, x or STEP, spread or SPREADS[0], weight)


def _draw(root: str, chosen: Sequence[Line], stage: str, names: Sequence[str], wanted: Wanted) -> None:
    """The charts and the table below, of what is there now."""
    drawn = _of_stage(chosen, curves_data.trainings(root, chosen), stage)
    logs = _read({name: drawn[name] for name in names if name in drawn})
    curves = {metric: _joined(logs, metric, wanted) for metric in wanted.metrics}
    every = list(dict.fromkeys(each.name for found in curves.values() for each in found))
    if not wanted.metrics:
        look.empty("No metric is chosen.", "Choose one above.")
        return
    st.html(curves_chart.legend(every))
    places = st.columns(2) if len(curves) > 1 else [st.container()]
    for at, (metric, found) in enumerate(curves.items()):
        with places[at % len(places)]:
            if found:
                st.html(f"<b>{look.as_text(metric)}</b>")
                chart = curves_chart.chart(found, every, metric, wanted.x, legend=False)
                st.altair_chart(chart, width="stretch", key=f"chart {metric}")
                charts.downloads(curves_chart.chart(found, every, metric, wanted.x, legend=True), f"curves {metric}")
            else:
                look.empty(f"No points of `{metric}`.", "None of these lines has logged it.")
    _told(logs, curves, wanted)
    _table(logs, wanted)


def _joined(logs: Mapping[str, Mapping[Training, Log]], metric: str, wanted: Wanted) -> list[Drawn]:
    found = []
    for name, of in logs.items():
        seeds = {each.seed: log.metrics[metric] for each, log in of.items() if metric in log.metrics}
        seeds = {seed: points for seed, points in seeds.items() if len(points.steps)}
        if seeds:
            found += curves_chart.joined(name, seeds, wanted.spread, wanted.weight)
    return found


def _told(logs: Mapping[str, Mapping[Training, Log]], curves: Mapping[str, Sequence[Drawn]], wanted: Wanted) -> None:
    """What the lines and bands are, and what is not as it seems."""
    several = any(len(of) > 1 for of in logs.values())
    band = f"Line: the mean over seeds; band: {wanted.spread}." if several and wanted.spread != EACH else ""
    smoothed = f"Smoothed by {wanted.weight:g}." if wanted.weight else "Not smoothed."
    live = sum(each.state == "training" for of in logs.values() for each in of)
    now = f":material/sync: {count(live, 'training')} going on now." if live else ""
    st.caption(f"{now} {band} {smoothed} Point at a line to see its values.".strip())
    notes = []
    for metric in wanted.metrics:
        for name, of in logs.items():
            for each, log in of.items():
                points = log.metrics.get(metric)
                if points is not None and points.lost:
                    points_told = f"{points.lost} of {points.lost + len(points.steps)} points"
                    notes.append(f"{metric} of {name}, seed {each.seed}: {points_told} are no finite numbers")
        for drawn in curves[metric]:
            if drawn.curve.fewer_from is not None:
                notes.append(f"{metric} of {drawn.name}: not of all seeds from step {drawn.curve.fewer_from}")
    for note in notes[:8]:
        st.html(f"<small>⚠&ensp;{look.as_text(note)}</small>")
    if len(notes) > 8:
        st.html(f"<small>and {count(len(notes) - 8, 'more such note')}</small>")


def _table(logs: Mapping[str, Mapping[Training, Log]], wanted: Wanted) -> None:
    """Each training: how it stands, and the last values that it logged."""
    rows = []
    for name, of in logs.items():
        for each, log in of.items():
            last = {
                metric: number(float(log.metrics[metric].values[-1]))
                for metric in wanted.metrics
                if metric in log.metrics and len(log.metrics[metric].values)
            }
            rows.append({"line": name, "seed": str(each.seed), "state": each.state, "steps": log.last_step, **last})
    shown_as = {metric: st.column_config.TextColumn(f"last {metric}") for metric in wanted.metrics}
    with st.expander(f"{count(len(rows), 'training')}: state and last values"):
        st.dataframe(pd.DataFrame(rows), hide_index=True, placeholder="", column_config=shown_as)
