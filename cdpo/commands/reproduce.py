"""reproduce: from what was published to a project that makes it again, and how near that comes."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from cdpo.commands.hub import fetched
from cdpo.commands.matrix import say
from cdpo.config.lock import LOCK, HubName
from cdpo.config.tables import read_tables
from cdpo.errors import CdpoError
from cdpo.files import read_json, write_text
from cdpo.hub.recipe import RECIPE, Retold
from cdpo.plan.references import References
from cdpo.project import Project


def reproduce(project: Project, name: str, to: str) -> int:
    """Write the project that makes `name` again into the folder `to`, or compare what that made; returns the exit code.

    `name`: a published model (`owner/run@tag`), or a folder that holds a cdpo.json.
    """
    recipe = find_recipe(project, name)
    again = Project.at(str(Path(to) / "configs"), str(Path(to) / ".cdpo"), None)
    if again.tasks.exists():
        return compare(again, recipe)
    retold = Retold(recipe)
    text = yaml.safe_dump(retold.tasks(), sort_keys=False, allow_unicode=True, width=1000)
    head = f"# {recipe['run']}, tag {recipe['tag']}, as cdpo {recipe['cdpo']} made it; from {name}\n"
    write_text(again.tasks, head + text)
    if (lock := project.configs / LOCK).exists():
        shutil.copyfile(lock, again.configs / LOCK)
    click.echo(f"written {again.tasks}")
    missing = _missing(again, retold)
    for each in missing:
        click.echo(f"cannot be had: {each}")
    if missing:
        click.echo(f"put them into {to}, and call this again with the same --to")
    for each in retold.trusted:
        click.echo(
            f"not trusted: {each} brings code of its own, which was run. Read it, write `trust_remote_code: true` in "
            f"its entry in {again.tasks}, and call this again with the same --to"
        )
    if missing or retold.trusted:
        return 1
    return compare(again, recipe)


def find_recipe(project: Project, name: str) -> dict[str, Any]:
    """What was published beside a model. Raises CdpoError where there is none."""
    place = Path(name)
    if not place.is_dir():
        _, place = fetched(project, HubName.parse("model", name))
    if not (place / RECIPE).exists():
        raise CdpoError(f"{place} holds no {RECIPE}: it was not published by this or a later release of cdpo")
    found: dict[str, Any] = read_json(place / RECIPE)
    return found


def _missing(again: Project, retold: Retold) -> list[str]:
    """Files and folders of the recipe's maker that are not here, or are not the same."""
    found = []
    references = References(read_tables(again.configs), again.tasks.resolve().parent)
    for name, sha256 in retold.local.items():
        if name.endswith(".py"):
            # that it is the same is told by the keys, in which it counts with the function's name
            if not (again.configs.parent / name).exists():
                found.append(f"{name}: the maker's own program; no such file in {again.configs.parent}")
            continue
        try:
            given = references.data_files(f"./{name}") if "." in name else references.model(f"./{name}")[0]
        except ValueError:
            found.append(f"{name}, sha256 {sha256}: no such file in {again.configs.parent}")
            continue
        if given["sha256"] != sha256:
            found.append(f"{name}: the one here has other content (sha256 {given['sha256']}, not {sha256})")
    return found


def compare(again: Project, recipe: Mapping[str, Any]) -> int:
    """Say which steps have the keys that were published, and, once they are made, how near the figures come."""
    plan = again.fetched(again.plan, say)
    keys = {step.key for step in plan.steps.values()}
    same = True
    for step in recipe["steps"]:
        there = step["key"] in keys
        same &= there
        click.echo(f"{'same key' if there else 'OTHER KEY':<10} {step['pipeline']:<18} {step['key'][:12]}")
    if not same:
        versions = f"this is cdpo {_version()}, and {recipe['cdpo']} made it"
        click.echo(f"not the same steps: a file differs, or a default has changed ({versions})")
        return 1
    published = {step["key"] for step in recipe["steps"]}
    # its name may carry more: every value is written now
    refs = [ref for ref in again.store.read_refs(recipe["tag"]) if published <= {*ref["steps"]}]
    if not refs or any(again.store.find(key) is None for key in published):
        click.echo(f"next: cd {again.configs.parent} && cdpo execute, then this again")
        return 0
    from cdpo.report.collect import collect_run

    now = collect_run(again.store, refs[0])["metrics"]
    click.echo(f"\n{'metric':<24} {'published':>12} {'rebuilt':>12}")
    for name, value in recipe["metrics"].items():
        mine = now.get(name)
        shown = "none" if mine is None else f"{mine['mean']:.6f}"
        equal = mine is not None and mine["mean"] == value["mean"]
        click.echo(f"{name:<24} {value['mean']:>12.6f} {shown:>12} {'' if equal else '  differs'}".rstrip())
    return 0


def _version() -> str:
    from cdpo import __version__

    return __version__
