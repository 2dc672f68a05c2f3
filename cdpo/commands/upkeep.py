"""redo, stop, clear, gc, init, import: what changes a store or writes a project. What deletes shows first, and asks."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cdpo.errors import CdpoError, UsageError
from cdpo.files import read_json
from cdpo.plan.estimates import show_size as _size
from cdpo.project import Project

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdpo.hub.withdraw import Publication
    from cdpo.store.removal import Removal


#: artifacts, and tokens
IGNORED = (".cdpo/", "configs/services/")


def redo(project: Project, text: str) -> None:
    from cdpo.store.names import short
    from cdpo.store.removal import being_read

    key, folder = project.find_step(text)
    if folder is None:
        raise CdpoError(f"step {key[:12]} is not finished; `cdpo execute` makes it")
    if short(key) in being_read(project.store):
        raise CdpoError(f"{folder}: a step that runs now reads it; wait, or `cdpo stop`")
    aside = project.store.discard(key)
    click.echo(f"set aside: {aside}\nthe next `cdpo execute` makes it again")


def stop(project: Project) -> None:
    from cdpo.engine.batch.engine import stop as cancel_jobs
    from cdpo.engine.engines import make_backend
    from cdpo.engine.stop import stop as stop_workers

    backend = make_backend(project.store, project.devices())
    queued = cancel_jobs(backend, project.store) if backend is not None else []
    for key in queued:
        click.echo(f"cancelled the job of {key[:12]}")
    stopped = [key for key in stop_workers(project.store) if key not in queued]
    for key in stopped:
        click.echo(f"stopped {_label(project, key)}")
    if not stopped and not queued:
        click.echo("nothing runs in this store")


def _label(project: Project, key: str) -> str:
    """What a step that is being made is called, where its step.json tells."""
    try:
        step = read_json(project.store.work(key) / "step.json")
        return f"{step['pipeline']}/{step['name']}-{key[:12]}"
    except (OSError, ValueError, KeyError):
        return key[:12]


def clear(project: Project, tag: str, yes: bool, keep_hub: bool) -> None:
    """A tag's runs, here and on the hub where they were published."""
    from cdpo.hub.withdraw import published, pushes_of
    from cdpo.store.removal import plan_clear

    # what is withdrawn is not remembered as published
    found = plan_clear(project.store, tag, [] if keep_hub else pushes_of(project.store, tag))
    if not found:
        raise CdpoError(f"no run of tag {tag!r} in {project.store.root}; `cdpo results` shows the tags")
    project.hub(click.echo)
    _delete(project, found, yes, [] if keep_hub else published(project.store, tag, click.echo))


def gc(project: Project, weights: bool, yes: bool) -> None:
    from cdpo.store.removal import plan_gc

    found = plan_gc(project.store, project.store.finished() if weights else ())
    if not found:
        click.echo("nothing to free")
        return
    _delete(project, found, yes)


def _delete(project: Project, found: "list[Removal]", yes: bool, published: "Sequence[Publication]" = ()) -> None:
    """Show what would go, ask, and delete exactly that; what is elsewhere first, while it is still known here."""
    from cdpo.store.removal import remove

    for publication in published:
        click.echo(f"{'hub':<8} {'':>9}  {publication}")
    for each in found:
        click.echo(f"{each.kind:<8} {_size(each.bytes):>9}  {each.path}  ({each.why})")
    on_hubs = f"{len(published)} on a hub, and " if published else ""
    click.echo(f"{on_hubs}{len(found)} things here, {_size(sum(each.bytes for each in found))}")
    if not yes and not _confirmed():
        click.echo("nothing is deleted")
        return
    for publication in published:
        publication.remove()
        click.echo(f"withdrawn: {publication.kind} {publication.repo}, {publication.tag}")
    gone = list(remove(project.store, found))
    click.echo(f"deleted {len(gone)} of {len(found)}")
    for each in found:
        if each not in gone:
            click.echo(f"left alone, being made or read now: {each.path}")


def _confirmed() -> bool:
    try:
        return click.confirm("Delete exactly this?")
    except click.Abort:
        if sys.stdin.isatty():
            raise
        click.echo()  # behind the question
        raise UsageError("nothing is deleted: there is nobody to ask here, and `--yes` was not said") from None


def init(folder: str) -> None:
    """Copy the shipped configs; a file that is there already is left alone, and said so."""
    from cdpo.config.tables import shipped_configs

    target = Path(folder) / "configs"
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file; name another folder")
    source = shipped_configs()
    for path in sorted(source.rglob("*.yaml")):
        place = target / path.relative_to(source)
        if place.exists():
            click.echo(f"kept    {place}")
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        click.echo(f"written {place}")
    _ignore(Path(folder) / ".gitignore")
    click.echo("next: cdpo prep && cdpo execute && cdpo results")


def _ignore(place: Path) -> None:
    """Keep tokens and artifacts out of a repository that is made of the project; a file that is there is left alone."""
    if not place.exists():
        place.write_text("".join(f"{each}\n" for each in IGNORED), encoding="utf-8")
        click.echo(f"written {place}")
        return
    missing = [each for each in IGNORED if each not in place.read_text(encoding="utf-8").splitlines()]
    if missing:
        click.echo(f"kept    {place}: add {' and '.join(missing)}, which are nobody's to commit")


def import_store(project: Project, other: str) -> None:
    from cdpo.store import Store
    from cdpo.store.transfer import import_from

    found = import_from(project.store, Store(Path(other)))
    for folder, why in found.refused.items():
        click.echo(f"not taken: {folder} ({why})")
    click.echo(f"added {len(found.added)} steps and {len(found.runs)} runs; {found.present} steps were here already")
