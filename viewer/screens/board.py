"""Board: every run by stage, as it stands now; what devices do, how long it takes, what failed."""

from pathlib import Path

import streamlit as st

from cdpo.plan.names import count
from cdpo.report.board import OVER, Board, Cause, Row
from cdpo.store.names import short
from cdpo.viewer import board_data, board_grid, choices, look, source

#: seconds between two looks, while something runs and else
LIVE, IDLE = 2.5, 10.0
#: runs on one page of the grid, and causes of failures that are shown
PAGE, MOST_CAUSES = 50, 8
#: characters of a cause
LONGEST = 2000
SHOWN = {"all": "all runs", "unfinished": "unfinished", "running": "running", "failed": "failed"}

store = source.shown()
assert store is not None, "the frame shows no page without a store"
root = str(store.root)
look.head("Board", "Which steps of every run are done, which run now, and what failed. It refreshes by itself.")
st.html(Path(board_grid.__file__).parent / "board.css")


def fits(board: Board, row: Row, shown: str) -> bool:
    if shown == "unfinished":
        return any(board.steps[key]["state"] not in OVER for key in row.steps)
    if shown == "running":
        return any(board.steps[key]["state"] == "running" for key in row.steps)
    if shown == "failed":
        return any(board.steps[key]["state"] in ("failed", "blocked", "damaged") for key in row.steps)
    return True


def choose(board: Board, rows: list[Row]) -> list[Row]:
    """The runs that the user wants to see."""
    left, right = st.columns([3, 2], vertical_alignment="center")
    shown = left.segmented_control(
        "Runs",
        list(SHOWN),
        format_func=SHOWN.__getitem__,
        default="all",
        required=True,
        key="board_state",
        bind="query-params",
        label_visibility="collapsed",
    )
    part = right.text_input(
        "Name",
        key="board_find",
        bind="query-params",
        placeholder="part of a run's name",
        label_visibility="collapsed",
    )
    return [row for row in rows if fits(board, row, shown or "all") and part.strip().lower() in row.label.lower()]


def in_words(running: int, living: int) -> str:
    """What is going on."""
    if running:
        return f"{count(running, 'step')} running"
    return "An execution is alive, and between two steps" if living else "Nothing is running"


def show_failure(cause: Cause, kept: list[tuple[str, str]]) -> None:
    last = cause.steps[0]
    damaged = last["state"] == "damaged"
    with st.container(border=True):
        held = f", and {count(len(cause.blocked), 'step')} cannot start before" if cause.blocked else ""
        what = f"{count(len(cause.steps), 'step')} {'damaged' if damaged else 'failed'}"
        st.html(
            f"<b>{what}</b>, for {count(len(cause.runs), 'run')}{held}"
            f'<div class="cdpo-cause">{look.as_text(cause.reason[:LONGEST])}</div>'
            + board_grid.named(cause.steps, kept)
        )
        if not damaged:
            lines = board_data.last_lines(root, last)
            st.html(
                f'<div class="cdpo-path">{look.as_text(str(last.get("log", "")))}</div>'
                f'<div class="cdpo-log">{look.as_text(chr(10).join(lines)) or "its log is empty"}</div>'
            )
        logs = "" if damaged else f"cdpo logs {short(last['key'])}   # all of its log\n"
        again = "cdpo execute   # makes it again; a training goes on from its last checkpoint" if cause.asked else ""
        st.code((logs + again).rstrip(), language="sh")
        if not cause.asked:
            st.caption("No tasks file asks for these runs now, so that nothing makes them again.")


def show() -> None:
    board, kept = board_data.board(root), board_data.kept()
    for problem in board.problems:
        st.html(f'<div class="cdpo-cause">{look.as_text(problem)}</div>')
    rows = board.under(choices.tags())
    if not rows:
        look.empty("No runs yet.", "This store has no plan and no runs. These make them:", "cdpo prep\ncdpo execute")
        return
    at_work = board.at_work()
    living, slots, left = board_data.devices(root, board)
    if bool(at_work or living) != busy:
        st.rerun()
    counts = board.counts(rows)
    st.html(board_grid.overview(counts.values(), in_words(len(at_work), living), left.text() if left else ""))
    if left and left.untimed:
        st.caption(f"Never timed in this store yet: {', '.join(left.untimed)}.")
    if not board.has_plan:
        look.empty(
            "This store has no plan.",
            "It was imported, or is a copy of what was published: what its runs have made is shown, and nothing "
            "waits here. With the tasks file beside it, this plans the rest:",
            "cdpo prep",
        )
    elif not at_work and not living and any(sum(counts.values(), start=type(counts[board.stages[0]])()).keys() - OVER):
        st.code("cdpo execute   # makes what is not done yet", language="sh")
    if at_work or living:
        idle = f", {count(slots - len(at_work), 'place')} free" if slots and slots > len(at_work) else ""
        st.subheader(f"Devices{idle}", anchor=False)
        st.html(board_grid.devices(board, kept))
    if serving := board_data.serving(root):
        st.subheader("Services", anchor=False)
        st.html(board_grid.services(serving))

    chosen = choose(board, rows)
    if not chosen:
        st.info("No run fits this choice.")
    else:
        pages = -(-len(chosen) // PAGE)
        page = st.pagination(pages, key="board_page", bind="query-params") if pages > 1 else 1
        page = min(page, pages)
        stages = [stage for stage in board.stages if any(stage in row.stages for row in rows)]
        st.html(board_grid.grid(board, stages, chosen[(page - 1) * PAGE : page * PAGE], rows, kept))
        st.html(board_grid.legend({state for states in counts.values() for state in states}))

    if causes := board.causes(rows):
        st.subheader("What went wrong", anchor=board_grid.WRONG)
        for cause in causes[:MOST_CAUSES]:
            show_failure(cause, kept)
        if len(causes) > MOST_CAUSES:
            st.caption(f"{len(causes) - MOST_CAUSES} more causes; `cdpo status` lists every step that failed.")


busy = board_data.is_busy(root)
st.fragment(show, run_every=LIVE if busy else IDLE)()
