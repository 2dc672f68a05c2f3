"""`cdpo view`: the viewer upon a store, in a browser; or what it shows as files."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from cdpo.errors import CdpoError
from cdpo.project import Project


def app() -> Path:
    """The file that Streamlit runs: the same in a checkout and in an installed wheel."""
    import cdpo.viewer

    return Path(next(iter(cdpo.viewer.__path__))) / "app.py"


def view(project: Project, hub: str | None, port: int | None, address: str | None) -> NoReturn:
    """Serve the viewer until Ctrl+C: this process becomes Streamlit's."""
    script = app()
    environment = {**os.environ, "CDPO_STORE": str(project.store.root), "CDPO_CONFIGS": str(project.configs)}
    if hub is not None:
        environment["CDPO_HUB"] = hub
    words = [sys.executable, "-m", "streamlit", "run", script.name]
    words += ["--server.port", str(port)] if port is not None else []
    words += ["--server.address", address] if address is not None else []
    # Streamlit reads its settings (where it listens, the theme) beside the app
    os.chdir(script.parent)
    os.execve(sys.executable, words, environment)


def export(project: Project, folder: Path, tag: str | None, compared: tuple[str, ...]) -> None:
    """Write results, curves and a comparison as files of HTML that need neither a server nor a network."""
    from cdpo.viewer.export import export as write

    if not project.store.refs.is_dir():
        raise CdpoError(f"{project.store.root}: no runs to export yet; `cdpo execute` makes some")
    for path in write(project.store.root, folder, tag, compared):
        print(path)
