"""Takes the two pictures of the README anew: `python tests/viewer/make_pictures.py`, from the stored playground.

It needs a chromium (`make browser`).
"""

import io
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from tests.viewer.served import browser, serve

HERE = Path(__file__).parent
PICTURES = HERE.parents[1] / "viewer" / "pictures"
COMPARED = "a=first/SFT_tiny_playground&b=first/DPO_tiny_playground_beta0.1_learning_rate0.0006"
#: name -> address, the heading that is scrolled to, height in pixels
SHOWN = {
    "results": ("results?tag=sweep", "Results", 830),
    "compare": (f"compare?{COMPARED}&prompt=989a5895d2fe7e2c", "Prompts", 1240),
}
#: pixels of the window, and of the picture
WINDOW, WIDE, COLOURS = 1500, 1100, 256


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as room:
        project = Path(room) / "playground"
        with tarfile.open(HERE / "playground.tar.xz") as packed:
            packed.extractall(project, filter="data")
        with serve(project / ".cdpo") as address, browser() as opened:
            for name, (where, heading, height) in SHOWN.items():
                page = opened.new_page(viewport={"width": WINDOW, "height": height})
                page.goto(f"{address}/{where}")
                page.wait_for_selector("h1")
                page.wait_for_timeout(6000)
                page.get_by_role("heading", name=heading, exact=True).evaluate("each => each.scrollIntoView()")
                page.wait_for_timeout(500)
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                picture = picture.resize((WIDE, WIDE * picture.height // picture.width), Image.Resampling.LANCZOS)
                # few colours are on it: an eighth of the bytes
                picture.quantize(COLOURS).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
