"""Makes playground.tar.xz anew, the stored fixture of these tests: `python tests/viewer/make_store.py` (7 minutes).

It is a real store: the playground's matrix of playground/configs/tasks.yaml, executed. Weights are evicted from it,
because the viewer reads none.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "playground"
        shutil.copytree(HERE / "playground", folder)
        subprocess.run([sys.executable, "-m", "cdpo.cli", "execute"], cwd=folder, check=True)
        pack(folder)


def pack(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "cdpo.cli", "gc", "--weights", "--yes"], cwd=folder, check=True)
    with tarfile.open(HERE / "playground.tar.xz", "w:xz") as packed:
        for name in ("configs", "judge.py", ".cdpo"):
            packed.add(folder / name, arcname=name)


if __name__ == "__main__":
    main()
