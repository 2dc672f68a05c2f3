"""What a Space is made of: the wheel and the few libraries that the viewer needs, without torch, over the test Hub."""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.hub.hub_server import WRITER, Hub
from tests.viewer.test_view_hub import DPO, SFT, published


def pins(path: Path) -> dict[str, str]:
    """Package -> version."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    found = [line.split("==") for line in lines if line]
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_the_header_is_one_of_a_space():
    text = (ROOT / "viewer" / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["sdk"] == "docker"
    assert f'"--port", "{header["app_port"]}"' in (ROOT / "viewer" / "Dockerfile").read_text()
    assert header["colorFrom"] in ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
    assert len(header["short_description"]) <= 60


def test_a_space_has_the_versions_that_are_tested():
    wanted, tested = pins(ROOT / "viewer" / "requirements.txt"), pins(ROOT / "constraints.txt")
    assert wanted == {name: tested[name] for name in wanted}


@pytest.mark.slow
def test_the_viewer_runs_without_what_trains(tmp_path, playground):
    """As the Dockerfile says, in an environment of its own."""
    wheels = tmp_path / "space"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(wheels), "."], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "-r", str(ROOT / "viewer" / "requirements.txt")], check=True)
    subprocess.run([*install, "--no-deps", *map(str, wheels.glob("*.whl"))], check=True)
    listed = subprocess.run([*install[:-2], "list"], capture_output=True, text=True, check=True).stdout
    assert not re.search(r"^(torch|transformers|trl|datasets) ", listed, re.MULTILINE)
    with Hub(tmp_path / "hub") as hub:
        published(hub, tmp_path, playground, SFT, DPO)
        env = hub.environment(tmp_path / "cache", WRITER)
        env |= {"CDPO_HUB": "ada", "XDG_CACHE_HOME": str(tmp_path / "new")}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cdpo = tmp_path / "venv" / "bin" / "cdpo"
        words = [str(cdpo), "view", "--port", str(port), "--address", "127.0.0.1"]
        server = subprocess.Popen(words, cwd=tmp_path, env=env | {"STREAMLIT_SERVER_HEADLESS": "true"})
        try:
            for _ in range(150):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                    break
                except OSError:
                    time.sleep(0.2)
            _every_page(port)
        finally:
            server.terminate()
            server.wait(timeout=20)


def _every_page(port: int) -> None:
    """Each page shows the published runs, and no trouble."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here: `make browser` installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        for name in ("results", "board", "curves", "compare", "datasets", "provenance"):
            page.goto(f"http://127.0.0.1:{port}/{name}")
            page.wait_for_selector("h1", timeout=60_000)
            page.wait_for_selector("[data-testid=stStatusWidget]", state="detached", timeout=60_000)
            page.wait_for_timeout(1500)
            assert page.locator("h1").inner_text() == name.title(), page.locator("[data-testid=stMain]").inner_text()
            assert page.locator("[data-testid=stException]").all_inner_texts() == [], name
            assert page.locator("[data-testid=stSidebar]").get_by_text("ada", exact=True).count() == 1
        browser.close()
