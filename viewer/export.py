"""`cdpo view --export`: results, curves and a comparison as files of HTML that need neither a server nor a network.

No script is in them, and a Content-Security-Policy keeps them from loading anything: what a model answered stays text.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from cdpo.errors import CdpoError
from cdpo.files import write_text
from cdpo.plan.names import count
from cdpo.report import by_prompt, curves, overview, side_by_side, texts
from cdpo.report.collect import collect
from cdpo.report.overview import Row, words
from cdpo.report.tables import number, p_shown
from cdpo.report.words import difference
from cdpo.store import Store
from cdpo.viewer import charts, curves_chart, look, results_chart, results_table
from cdpo.viewer.responses import MOST_SHOWN, label, marked

PAGES = {"Results": "index.html", "Curves": "curves.html", "Comparison": "compare.html"}
#: metrics that have a figure of their own, configurations whose curves are drawn, and prompts that are shown
MOST_FIGURES, MOST_LINES, MOST_PROMPTS = 4, 12, 200
#: whose curves are drawn: losses and rewards, as TRL's trainers of policies and of reward models call them
DRAWN = ("loss", "rewards/accuracies", "rewards/margins", "accuracy", "margin")
SMOOTHING = 0.6
#: dots for each pixel: a page has a dozen pictures
SHARPNESS = 1.5


def export(root: Path, folder: Path, tag: str | None, compared: Sequence[str]) -> list[Path]:
    """Write the pages into `folder`; returns their paths. `compared`: the labels of two runs or configurations; where
    it is empty, the two that the viewer shows unasked.

    Raises CdpoError where there are no runs, or where those to be compared are not there.
    """
    store = Store(root)
    refs = store.read_refs(tag)
    if not refs:
        raise CdpoError(f"{root}: no runs{f' under the tag {tag!r}' if tag else ''} to export")
    rows = overview.configuration_rows(collect(root, tag))
    pages = {"index.html": _results(rows), "curves.html": _curves(store, refs)}
    beside = _compared(store, refs, compared)
    if beside is not None:
        pages["compare.html"] = beside
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("export.html")
    listed = {name: file for name, file in PAGES.items() if file in pages}
    # all of them before any is written
    written = {file: template.render(pages=listed, own=file, **content) for file, content in pages.items()}
    for file, text in written.items():
        write_text(folder / file, text)
    return [folder / file for file in written]


def _figure(title: str, chart: Any) -> dict[str, str]:
    """As a picture, in which letters are as wide as they were when it was drawn, whatever fonts the reader has."""
    drawn = base64.b64encode(charts.figure_png(chart, SHARPNESS)).decode()
    return {"title": title, "image": f"data:image/png;base64,{drawn}"}


# -- results ----------------------------------------------------------------------------------------------------------


def _results(rows: Sequence[Row]) -> dict[str, Any]:
    metrics = overview.shown_unasked(rows, overview.metrics_of(rows))
    setup = [name for name in overview.SETUP if len({row.setup[name] for row in rows}) > 1] or ["method"]
    params = [name for name in overview.axes(rows) if any(name in row.params for row in rows)]
    marks = results_table.marks_of(rows)
    heads = [{"name": name, "number": False} for name in [*setup, "seeds"]]
    heads += [{"name": overview.greek(name), "number": True} for name in params]
    heads += [{"name": name, "number": True} for metric in metrics for name in (words(metric), "95 % interval")]
    heads += [{"name": name, "number": False} for name in ("state", "remarks")]
    drawn = {
        metric: results_table.drawings([row.cells.get(metric) for row in rows], False)
        if results_table.one_scale(metric, rows)
        else [None] * len(rows)
        for metric in metrics
    }
    lines = []
    for at, row in enumerate(rows):
        line = [_text(row.setup[name]) for name in setup] + [_text(", ".join(map(str, row.seeds)))]
        line += [{"shown": overview.shown(row.params.get(name))} for name in params]
        for metric in metrics:
            cell = row.cells.get(metric)
            line.append({"shown": "" if cell is None else number(cell.mean)})
            ends = "" if cell is None or cell.low is None else f"{number(cell.low)} to {number(cell.high or 0.0)}"
            line.append({"shown": ends, "image": drawn[metric][at]})
        line += [_text(row.state), _text(" ".join(f"⚠ {marks.index(mark) + 1}" for mark in row.marks))]
        lines.append(line)
    # what training measured is another thing for another method
    drawn_alone = [name for name in metrics if not overview.of_training(name)] or metrics
    figures = []
    for metric in drawn_alone[:MOST_FIGURES]:
        having = [row for row in rows if metric in row.cells][: results_chart.MOST]
        figures.append(_figure(words(metric), results_chart.chart(having, metric, False)))
    return {
        "title": "Results",
        "about": f"{count(len(rows), 'configuration')}, each over its seeds.",
        "results": {
            "heads": heads,
            "rows": lines,
            "marks": marks,
            "told": "Intervals are 95 %, over prompts: they hold fixed the seeds, the trained models, their responses "
            "and who scored them. Losses of different methods are different things.",
        },
        "figures": figures,
    }


def _text(shown: str) -> dict[str, Any]:
    return {"shown": shown, "text": True}


# -- curves -----------------------------------------------------------------------------------------------------------


def _curves(store: Store, refs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = side_by_side.configurations(refs)
    every = {each.run: each for each in curves.trainings(store, refs, store.finished(), own=True)}
    drawn: dict[str, dict[str, list[curves_chart.Drawn]]] = {}
    shown = 0
    labels = overview.short_labels([_line(name, members) for name, members in found.items()])
    for name, members in zip(labels, found.values(), strict=True):
        own = {every[run].seed: every[run] for ref in members if (run := side_by_side.label_of(ref)) in every}
        if not own:
            continue
        shown += 1
        if shown > MOST_LINES:
            continue
        logs = {seed: curves.read_log(each.path) for seed, each in own.items()}
        for metric in DRAWN:
            seeds = {seed: log.metrics[metric] for seed, log in logs.items() if metric in log.metrics}
            if seeds:
                of_method = drawn.setdefault(members[0]["method"], {})
                of_method.setdefault(metric, []).extend(curves_chart.joined(name, seeds, curves.SPREADS[0], SMOOTHING))
    figures = [
        _figure(f"{method}: {metric}", curves_chart.chart(lines, [each.name for each in lines], metric, "step", True))
        for method, of in drawn.items()
        for metric, lines in of.items()
    ]
    said = f" The first {MOST_LINES} of {shown} configurations that have any." if shown > MOST_LINES else ""
    none = "" if figures else " None has been logged yet."
    return {
        "title": "Curves",
        "about": f"Trainings, mean and lowest to highest over seeds, smoothed by {SMOOTHING}.{said}{none}",
        "figures": figures,
    }


def _line(label: str, refs: Sequence[dict[str, Any]]) -> Row:
    """A configuration as far as its name goes."""
    first = refs[0]
    params = {name: value for name, value in first["params"].items() if name != "seed"}
    setup = {name: str(first[name]) for name in overview.SETUP}
    runs = [side_by_side.label_of(ref) for ref in refs]
    return Row(setup, params, [ref["seed"] for ref in refs], "", [], label, runs)


# -- a comparison -----------------------------------------------------------------------------------------------------


def _compared(store: Store, refs: Sequence[dict[str, Any]], asked: Sequence[str]) -> dict[str, Any] | None:
    known = side_by_side.listed(refs)
    two = tuple(_known(name, known) for name in asked) or side_by_side.first_two(known, store.finished())
    if two is None:
        return None
    if two[0] == two[1]:
        raise CdpoError(f"{two[0]} cannot be compared with itself; `cdpo results` lists the others")
    beside = side_by_side.read(store, {name: known[name] for name in two})
    a, b = beside.groups
    found, why = side_by_side.differences(beside, a, b)
    metric = next((name for name in ("gold/mean", "reward/mean", *found) if name in found), None)
    seed = by_prompt.seeds(a, b)[0]
    runs = (by_prompt.of_seed(a, seed), by_prompt.of_seed(b, seed))
    table = by_prompt.by_prompt(store, runs[0], runs[1], metric, beside.matches)
    metrics = [
        [
            words(name),
            side_by_side.who(name, value),
            number(value["a_mean"]),
            number(value["b_mean"]),
            side_by_side.signed(value["difference"], 3),
            "" if value["low"] is None else f"{number(value['low'])} to {number(value['high'])}",
            p_shown(value["p"]),
            value["n"],
            value["losses"],
            value["ties"],
            value["wins"],
        ]
        for name, value in found.items()
    ]
    shown = list(table.index[:MOST_PROMPTS])
    of = f"the first {len(shown)} of {count(len(table), 'prompt')}" if len(table) > len(shown) else "every prompt"
    fixed = sorted({value["conditional_on"] for value in found.values()})
    not_compared = [f"{name} is not compared: {reason}" for name, reason in why.items()]
    return {
        "title": "Comparison",
        "about": "Paired by prompt: who is better, by how much, and what they answered.",
        "figures": [],
        "compared": {
            "a": two[0],
            "b": two[1],
            "metrics": metrics,
            "told": ". ".join([f"Conditional on {each}" for each in fixed] + not_compared),
            "title": f"Responses under seed {seed}, {of}",
            "prompts": [_prompt(runs, each, metric, table.loc[each]) for each in shown],
        },
    }


def _known(name: str, known: dict[str, Any]) -> str:
    fitting = [each for each in known if name in (each, each.partition("/")[2])]
    if len(fitting) != 1:
        told = f"{name!r} is the name of several: {', '.join(fitting)}" if fitting else f"there is no run {name!r}"
        raise CdpoError(f"{told}; `cdpo results` lists them, and TAG/NAME names one")
    return fitting[0]


def _prompt(runs: Sequence[Any], prompt_id: str, metric: str | None, row: Any) -> dict[str, Any]:
    rows = [next(iter(texts.responses(run, prompt_id)), None) for run in runs]
    first = next((each for each in rows if each is not None), None)
    prompt = [] if first is None else first["prompt"]
    said = [None if each is None else (each["response"] or "")[:MOST_SHOWN] for each in rows]
    pieces = difference(said[0], said[1]) if said[0] is not None and said[1] is not None else None
    answers = []
    for letter, text, each, marks in zip(
        "AB", said, rows, (pieces.a, pieces.b) if pieces else (None, None), strict=True
    ):
        score = "" if metric is None or row[letter.lower()] != row[letter.lower()] else number(row[letter.lower()])
        told = f"{words(metric)} {score}" if metric and score else ""
        if each is not None and len(each["response"] or "") > MOST_SHOWN:
            told += f" · the first {MOST_SHOWN:,} of {len(each['response']):,} characters"
        shown = "did not answer" if text is None else Markup(marked(marks) if marks else look.as_text(text))
        answers.append({"letter": letter, "told": told, "text": shown})
    opening = label(prompt[-1]["content"]) if prompt else prompt_id
    ahead = row["difference"]
    score = "" if ahead != ahead else f"B − A {side_by_side.signed(ahead, 3)}"
    messages = [{"role": each["role"], "text": Markup(look.as_text(each["content"][:MOST_SHOWN]))} for each in prompt]
    return {"opening": opening, "score": score, "prompt": messages, "answers": answers}
