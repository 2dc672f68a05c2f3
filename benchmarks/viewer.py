"""The viewer on a store of RUNS runs x ROWS rows: its first table, a comparison, and what memory its server takes.

    python benchmarks/viewer.py [RUNS] [ROWS]

CPU seconds (user and system). The first table is the page Results as Streamlit's own AppTest runs it, with every module
imported and nothing kept in memory, on the index that `cdpo execute` leaves; against pandas reading the same rows: all
columns of the scores of every run; and their responses too. The server is a real one, asked over its websocket by a
browser where there is one (chromium), and its memory is what the kernel counts.
"""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _machine import print_machine
from big_store import make

VIEWER = Path(__file__).resolve().parents[1] / "viewer"


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(what: str, do: Callable[[], object], tries: int = 1) -> float:
    """The least CPU seconds of some tries."""
    found, walls = [], []
    for _ in range(tries):
        before, wall = cpu(), time.perf_counter()
        do()
        found.append(cpu() - before)
        walls.append(time.perf_counter() - wall)
    print(f"{what}: {min(found):.2f} CPU s, {min(walls):.2f} s" + (f" (least of {tries})" if tries > 1 else ""))
    return min(found)


def main(runs: int, rows: int) -> None:
    print_machine()
    with tempfile.TemporaryDirectory() as room:
        store = Path(room) / ".cdpo"
        make(store, runs, rows)
        measure(store)


def measure(store: Path) -> None:
    import pandas as pd
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    from cdpo.report.collect import collect

    os.environ["CDPO_STORE"] = str(store)
    timed("results worked out from all rows, once (the end of `cdpo execute`)", lambda: collect(store))

    def page(name: str, **url: str) -> Callable[[], None]:
        def show() -> None:
            app = AppTest.from_file(str(VIEWER / "app.py"), default_timeout=300)
            app.switch_page(f"screens/{name}.py")
            for key, value in url.items():
                app.query_params[key] = value
            app.run()
            assert not app.exception, app.exception

        return show

    def forgetting(show: Callable[[], None]) -> Callable[[], None]:
        def fresh() -> None:
            st.cache_data.clear()
            st.cache_resource.clear()
            show()

        return fresh

    page("provenance")()  # modules are imported once, whatever is shown
    page("results")()
    first = timed("first table", forgetting(page("results")), 5)
    names = sorted(path.stem for path in (store / "refs" / "big").iterdir())
    two = {"a": f"big/{names[0]}", "b": f"big/{names[9]}"}
    timed("a comparison of two runs", forgetting(page("compare", **two)), 3)
    for name in ("board", "curves", "datasets", "provenance"):
        timed(f"page {name}", forgetting(page(name)), 3)
    print(f"memory of this process, all pages opened: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")
    scores = sorted(store.glob("steps/EVALREWARD/*/out/scores.parquet"))
    pandas = timed("pandas reading the scores of all rows", lambda: [pd.read_parquet(path) for path in scores])
    some = sorted(store.glob("steps/GEN/*/out/responses.parquet"))[:50]
    part = timed(f"pandas reading the responses of {len(some)} runs", lambda: [pd.read_parquet(path) for path in some])
    both = pandas + part * len(scores) / len(some)
    print(f"first table: {pandas / first:.0f} times faster than the scores, {both / first:.0f} with the responses")
    serve(store)


def serve(store: Path) -> None:
    """Memory and CPU of a real server while a browser opens its pages."""
    import shutil

    browser = shutil.which("chromium")
    if browser is None:
        print("no chromium here: the real server was not measured")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "streamlit", "run", "app.py", "--server.port", str(port), "--server.headless", "true"]
    server = subprocess.Popen([sys.executable, *words], cwd=VIEWER, stdout=subprocess.DEVNULL)
    try:
        for name in ("provenance", "results", "compare", "curves", "board", "datasets", "results"):
            before = _spent(server.pid)
            _open(browser, f"http://127.0.0.1:{port}/{name}")
            spent, memory = _spent(server.pid) - before, _memory(server.pid)
            print(f"server, after {name}: {spent:.2f} CPU s, {memory} MiB at most")
    finally:
        server.terminate()
        server.wait()


def _open(browser: str, address: str) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page()
        for _ in range(100):
            try:
                page.goto(address)
                break
            except Exception:  # it is not listening yet
                time.sleep(0.2)
        page.wait_for_selector("h1", timeout=120_000)
        page.wait_for_selector("[data-testid=stStatusWidget]", state="detached", timeout=120_000)
        time.sleep(2)
        opened.close()


def _spent(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (1000, 10_000)))
