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
#: name -> address, height in pixels
SHOWN = {"results": ("results?tag=first", 760), "compare": (f"compare?{COMPARED}", 1480)}
WIDE, COLOURS = 1200, 128


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as room:
        project = Path(room) / "playground"
        with tarfile.open(HERE / "playground.tar.xz") as packed:
            packed.extractall(project, filter="data")
        with serve(project / ".cdpo") as address, browser() as opened:
            for name, (where, height) in SHOWN.items():
                page = opened.new_page(viewport={"width": WIDE, "height": height})
                page.goto(f"{address}/{where}")
                page.wait_for_selector("h1")
                page.wait_for_timeout(6000)
                picture = Image.open(io.BytesIO(page.screenshot()))
                # few colours are on it: an eighth of the bytes
                picture.convert("RGB").quantize(COLOURS).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
