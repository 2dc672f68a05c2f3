"""Makes playground.tar.xz anew, the stored fixture of these tests: `python tests/viewer/make_store.py` (7 minutes).

It is a real store: the playground's matrix of playground/configs/tasks.yaml, executed. Weights are evicted from it,
because the viewer reads none.
"""

import os
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
    """Leave out what the viewer does not read, and where and by whom it was made."""
    subprocess.run([sys.executable, "-m", "cdpo.cli", "gc", "--weights", "--yes"], cwd=folder, check=True)
    for room in ("work", "verdicts", "locks", "measured"):
        shutil.rmtree(folder / ".cdpo" / room, ignore_errors=True)
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".txt", ".yaml") and path.is_file():
            text = path.read_text(encoding="utf-8").replace(str(folder), "/home/ada/playground")
            path.write_text(text.replace(f'"name": "{os.uname().nodename}"', '"name": "workstation"'), encoding="utf-8")
    with tarfile.open(HERE / "playground.tar.xz", "w:xz") as packed:
        for name in ("configs", "judge.py", ".cdpo"):
            packed.add(folder / name, arcname=name, filter=nobody)


def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
