"""What the board reads of a store, kept between its looks; every function takes the store's folder as text."""

from pathlib import Path
from typing import Any

import streamlit as st

from cdpo.engine.services.running import services
from cdpo.engine.watch import failure, tail
from cdpo.report.board import Board, Known, read_board
from cdpo.report.time_left import Left, executions, slots_of, time_left
from cdpo.store import Store
from cdpo.viewer import data

#: seconds for which a look serves everybody who looks: less than between two looks of one of them
FRESH = 1.0


@st.cache_resource(show_spinner=False, max_entries=4)
def _known(root: str) -> Known:
    return Known()


@st.cache_resource(ttl=FRESH, show_spinner=False, max_entries=4)
def board(root: str) -> Board:
    """The board as it stands. It is shared, and nobody changes it."""
    return read_board(Store(Path(root)), data.refs(root), _known(root))


def devices(root: str, now: Board) -> tuple[int, int | None, Left | None]:
    """How many executions live, how many steps the last one makes at once, and how long all of it takes."""
    store = Store(Path(root))
    slots = slots_of(store)
    return executions(store), slots, time_left(store, now, slots)


def serving(root: str) -> list[dict[str, Any]]:
    """The services that run, as `cdpo status` lists them."""
    return services(Store(Path(root)))


def last_lines(root: str, said: dict[str, Any]) -> list[str]:
    """The end of the log of a step that failed; where the log is on another machine, what was kept of it."""
    lines = tail(Path(said["log"])) if "log" in said and Path(said["log"]).is_file() else []
    return lines or (failure(Store(Path(root)).work(said["key"])) or {}).get("tail", [])
