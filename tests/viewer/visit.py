"""A page in a real browser, watched: what it asks of whom, what its console says, whether a script that is not the
viewer's ran; and what people do with it."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import TimeoutError

from tests.conftest import ROOT

#: what Streamlit itself asks for below a page that is opened by its address, and does not find
OWN_404 = re.compile(r"/_stcore/(health|host-config)$")
#: of a table: the middle of the column of ticks, and the height of its rows in pixels
TICK, ROW = 18, 36
PICTURES = Path(os.environ.get("CDPO_PICTURES") or ROOT / "tests" / "viewer" / "pictures")


class Visit:
    """A tab upon the viewer at `address`: a session of its own. `context` is a browser's, whose tabs share a cache."""

    def __init__(self, context: Any, address: str) -> None:
        self.address = address
        self.page = context.new_page()
        self.page.set_viewport_size({"width": 1440, "height": 900})
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(f"page error: {error}"))
        self.page.on("dialog", self._asked)
        self.page.on("request", self._requested)

    def _said(self, message: Any) -> None:
        if message.type == "error" and not OWN_404.search(urlsplit(message.location.get("url", "")).path):
            self.errors.append(f"{message.text} {message.location}")

    def _asked(self, dialog: Any) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _requested(self, request: Any) -> None:
        to = urlsplit(request.url)
        if to.scheme not in ("data", "blob", "file") and to.hostname != "127.0.0.1":
            self.elsewhere.append(request.url)

    def close(self) -> None:
        """Ends it. Fails where something happened that must not."""
        pwned = self.page.evaluate("window.pwned")
        self.page.close()
        assert not self.errors, self.errors
        assert not self.elsewhere, self.elsewhere
        assert pwned is None, pwned

    # -- what people do ------------------------------------------------------------------------------------------------

    def open(self, where: str, title: str | None = None) -> None:
        """A page by its address; `title` is its heading, by default that of the page's name."""
        self.page.goto(f"{self.address}/{where}")
        self.heading(title or urlsplit(where).path.capitalize())

    def heading(self, title: str) -> None:
        self.page.get_by_role("heading", name=title, exact=True, level=1).wait_for()
        self.settle()

    def settle(self) -> None:
        """Wait until the page is what the last click makes of it."""
        # a click takes a moment until the server knows of it
        self.page.wait_for_timeout(200)
        done = '[data-testid="stApp"][data-test-script-state="notRunning"][data-test-connection-state="CONNECTED"]'
        self.page.wait_for_selector(done)
        self.page.wait_for_function("!document.querySelector('[data-stale=true], [data-testid=stSkeleton]')")

    def menu(self, title: str) -> None:
        self.page.get_by_test_id("stSidebarNavLink").filter(has_text=title).click()
        self.heading(title)

    def tick(self, row: int, table: int = 0) -> None:
        """The row of a table, which is a picture: by its place."""
        drawn = self.page.get_by_test_id("stDataFrame").nth(table)
        drawn.locator("canvas").first.wait_for()
        drawn.click(position={"x": TICK, "y": ROW * (1.5 + row)})
        # not over the table, whose own tools would lie on what is above it
        self.page.mouse.move(5, 5)
        self.settle()

    def write(self, label: str, text: str) -> None:
        """Into a field, as far as leaving it."""
        field = self.page.get_by_role("textbox", name=label, exact=True)
        field.fill(text)
        field.press("Enter")
        self.settle()

    def choose(self, label: str, option: str) -> None:
        """From a list."""
        wanted = self.page.get_by_role("option", name=option, exact=True)
        for _ in range(5):
            self.page.get_by_test_id("stSelectbox").filter(has=self.page.get_by_label(label)).click()
            with contextlib.suppress(TimeoutError):  # a page that is drawn anew closes the list
                wanted.click(timeout=3000)
                break
        self.settle()

    def button(self, name: str) -> Any:
        """A button, or one of several that exclude each other."""
        named = self.page.get_by_text(name, exact=True)
        return self.page.locator("button, [role=radio]").filter(has=named).first

    def press(self, name: str) -> None:
        self.button(name).click()
        self.settle()

    def download(self, name: str) -> bytes:
        with self.page.expect_download() as coming:
            self.button(name).click()
        return Path(coming.value.path()).read_bytes()

    def back(self, place: str) -> None:
        """The browser's Back, until another page is there: each choice is a place of its own to come back to."""
        for _ in range(10):
            self.page.go_back()
            if self.place() == place:
                break
        self.heading(place.capitalize())

    # -- what there is -------------------------------------------------------------------------------------------------

    def words(self) -> str:
        return str(self.page.get_by_test_id("stMain").inner_text())

    def choices(self) -> dict[str, list[str]]:
        """What the address says."""
        return parse_qs(urlsplit(self.page.url).query)

    def place(self) -> str:
        return urlsplit(self.page.url).path.strip("/")

    def wide(self) -> bool:
        """Whether one has to scroll to the side."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def picture(self, name: str) -> None:
        """The whole page, kept for people to look at."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        # a page scrolls in itself: one picture of all of it needs a window as high
        tall = self.page.evaluate("document.querySelector('[data-testid=stMain]')?.scrollHeight ?? 0")
        self.page.set_viewport_size({"width": 1440, "height": max(900, min(int(tall), 6000))})
        self.page.wait_for_timeout(700)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)
        self.page.set_viewport_size({"width": 1440, "height": 900})


@contextlib.contextmanager
def visiting(context: Any, address: str) -> Iterator[Visit]:
    visit = Visit(context, address)
    try:
        yield visit
    except BaseException:
        visit.page.close()
        raise
    visit.close()
