"""The board as HTML: states as small marks, the grid of runs and stages, what devices do."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cdpo.engine.show.words import duration
from cdpo.plan.names import count
from cdpo.report.board import Board, Cell, Row, label_of
from cdpo.store.names import short
from cdpo.viewer import look

#: what a mark says; the share of a step that runs stands in its place
MARKS = {
    "failed": "failed",
    "running": "running",
    "damaged": "damaged",
    "blocked": "blocked",
    "waiting": "waiting",
    "missing": "not here",
    "evicted": "✓",
    "done": "✓",
}
MEANINGS = {
    "failed": "the last attempt failed",
    "running": "being made now",
    "damaged": "its files are not whole; the next execute makes it again",
    "blocked": "needs a step that failed",
    "waiting": "not begun, or interrupted",
    "missing": "in no plan, and not in this store",
    "evicted": "done; its weights were removed and are made again when they are needed",
    "done": "done",
}
#: states in the order of bars and of what is told of them: what is over at the left
ORDER = ("done", "evicted", "running", "waiting", "missing", "blocked", "damaged", "failed")
#: steps that are named one by one
MOST_NAMED = 6


def step_name(pipeline: str, key: str) -> str:
    """How a step is called in addresses; the beginning of its key alone does too."""
    return f"{pipeline} {short(key)}"


def step_link(said: Mapping[str, Any], tags: Sequence[str], text: str, title: str = "") -> str:
    """A link to the provenance of a step of which status says this; of a part of one to the whole. `text` is HTML."""
    name = step_name(said["pipeline"], said.get("of", said["key"]))
    query = urlencode([("step", name), *(("tag", tag) for tag in tags)])
    where = f'href="provenance?{look.as_text(query)}"'
    return f'<a {where} title="{look.as_text(title)}">{text}</a>'


def breakable(name: str) -> str:
    """A name as HTML that may be wrapped behind each `_`: it is long, and its end tells runs apart."""
    return str(look.as_text(name)).replace("_", "_<wbr>")


def overview(counts: Iterable[Counter[str]], said: str, left: str) -> str:
    """What is going on, in one line over one bar."""
    total: Counter[str] = sum(counts, Counter())
    steps = total.total()
    over = total["done"] + total["evicted"]
    told = ", ".join(f"{total[state]} {MARKS[state]}" for state in ORDER[2:] if total[state])
    return (
        f'<div class="cdpo-over"><div><b>{look.as_text(said)}</b><span>{look.as_text(left)}</span></div>{bar(total)}'
        f"<div><span>{over} of {count(steps, 'step')} done{', ' if told else ''}{told}</span></div></div>"
    )


def bar(states: Counter[str]) -> str:
    """How many steps are in which state, as one bar; what is done at its left."""
    told = ", ".join(f"{states[state]} {state}" for state in ORDER if states[state])
    pieces = "".join(f'<i class="{state}" style="flex-grow:{states[state]}"></i>' for state in ORDER if states[state])
    return f'<div class="cdpo-bar" title="{told}">{pieces}</div>'


def grid(board: Board, stages: Sequence[str], rows: Sequence[Row], all_rows: Sequence[Row], tags: Sequence[str]) -> str:
    """`rows` by stage; the counts in its head are over `all_rows`."""
    counts = board.counts(all_rows)
    of_runs = count(len(all_rows), "run") if len(rows) == len(all_rows) else f"{len(rows)} of {len(all_rows)} runs"
    head = "".join(
        f'<th scope="col">{breakable(stage)}<small>{_over(counts[stage])}</small>{bar(counts[stage])}</th>'
        for stage in stages
    )
    body = []
    for (tasks, tag), several in groupby(rows, key=lambda row: (row.tasks, row.tag)):
        file = look.as_text(Path(tasks).name) if tasks else "in no tasks file now"
        heading = f"{look.as_text(tag)}<small>{file}</small>"
        body.append(f'<tr class="tag"><th colspan="{len(stages) + 1}">{heading}</th></tr>')
        body.extend(_line(board, row, stages, tags) for row in several)
    return (
        f'<div class="cdpo-wide"><table class="cdpo-board"><thead><tr><th scope="col">{of_runs}</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def legend(present: Iterable[str]) -> str:
    """The marks that are on the board, and what they mean."""
    shown = set(present)
    marks = (
        f'<span><span class="cdpo-mark {state}">{MARKS[state]}</span> {MEANINGS[state]}</span>'
        for state in ORDER
        if state in shown
    )
    return f'<div class="cdpo-legend">{"".join(marks)}</div>'


def devices(board: Board, tags: Sequence[str]) -> str:
    """Who runs on what, since when, and how far that is."""
    now = time.time()
    lines = []
    for said in board.at_work():
        share = min(1.0, said["done"] / said["total"]) if said.get("total") else None
        far = f"{said['done']} of {said['total']} {said['unit']}" if share is not None else "has not said how far it is"
        since = ""
        if "seconds" in said:
            began = time.strftime("%H:%M", time.localtime(now - said["seconds"]))
            since = f"since {began}, {duration(said['seconds'])}"
        alone = "; goes on by itself, as the execution that started it has ended" if said.get("alone") else ""
        lines.append(
            f"<tr><th>{look.as_text(str(said.get('place') or 'starting'))}</th>"
            f"<td>{step_link(said, tags, breakable(label_of(said)))}{alone}</td>"
            f'<td><div class="cdpo-far"><i style="width:{100 * (share or 0):.0f}%"></i></div></td>'
            f"<td>{look.as_text(far)}</td><td>{since}</td></tr>"
        )
    return f'<div class="cdpo-wide"><table class="cdpo-devices">{"".join(lines)}</table></div>'


def services(found: Sequence[dict[str, Any]]) -> str:
    """The servers that steps use."""
    lines = "".join(
        f"<tr><th>{look.as_text(each['label'])}</th><td>{look.as_text(each['text'])}</td>"
        f"<td>for {breakable(', '.join(each['users'])) or 'nobody now'}</td></tr>"
        for each in found
    )
    return f'<div class="cdpo-wide"><table class="cdpo-devices">{lines}</table></div>'


def named(steps: Sequence[dict[str, Any]], tags: Sequence[str]) -> str:
    """Steps by name, each a link; of many the first."""
    links = (step_link(each, tags, breakable(label_of(each))) for each in steps[:MOST_NAMED])
    shown = "".join(f"<li>{link}</li>" for link in links)
    more = f"<li>and {len(steps) - MOST_NAMED} more</li>" if len(steps) > MOST_NAMED else ""
    return f'<ul class="cdpo-names">{shown}{more}</ul>'


def _over(states: Counter[str]) -> str:
    return f"{states['done'] + states['evicted']}/{states.total()}"


def _line(board: Board, row: Row, stages: Sequence[str], tags: Sequence[str]) -> str:
    query = look.as_text(urlencode([("runs", row.label), *(("tag", tag) for tag in tags)]))
    cells = "".join(f"<td>{_mark(board, cell, tags)}</td>" for cell in (board.cell(row, stage) for stage in stages))
    return f'<tr><th scope="row"><a href="provenance?{query}">{breakable(row.name)}</a></th>{cells}</tr>'


def _mark(board: Board, cell: Cell | None, tags: Sequence[str]) -> str:
    if cell is None:
        return ""
    key = next(key for key in cell.keys if board.steps[key]["state"] == cell.state)
    said = board.steps[key]
    text = MARKS[cell.state]
    if cell.state == "running" and cell.share is not None:
        text = f"{100 * cell.share:.0f} %"
    if len(cell.keys) > 1:
        text = f"{text} {cell.over}/{len(cell.keys)}"
    title = f"{label_of(said)}: {MEANINGS[cell.state]}"
    if cell.state in ("done", "evicted"):
        title += f", in {duration(said['seconds'])}"
    elif cell.state in ("failed", "blocked", "damaged"):
        title = f"{label_of(said)}: {said.get('error') or 'needs ' + said['by']}"[:400]
    fill = f' style="--share:{100 * cell.share:.0f}%"' if cell.share is not None else ""
    return step_link(said, tags, f'<span class="cdpo-mark {cell.state}"{fill}>{text}</span>', title)
