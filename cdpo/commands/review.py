"""`cdpo review`: what reviewers decided, to a file or to the hub."""

from pathlib import Path

import click

from cdpo.commands.matrix import say
from cdpo.errors import UsageError
from cdpo.project import Project
from cdpo.review import acts, export, publish
from cdpo.review.sources import Source, find
from cdpo.review.summary import agreement


def _decided(
    project: Project, name: str, split: str | None, keep_flagged: bool
) -> tuple[Source, acts.Reviews, export.Exported]:
    source = find(project.store, name)
    reviews = acts.read_reviews(project.store, source.key)
    if not reviews:
        raise UsageError(f"nobody reviewed {source.label} yet: `cdpo view`, page Datasets")
    return source, reviews, export.export(source, reviews, keep_flagged=keep_flagged, splits=[split] if split else [])


def write(project: Project, name: str, to: str, split: str | None, keep_flagged: bool) -> None:
    """Write the rows that reviewers decided as TRL reads them. Raises UsageError where there are none."""
    _, reviews, exported = _decided(project, name, split, keep_flagged)
    export.write(exported.rows, Path(to))
    click.echo(f"{to}: {exported.told()}")
    found = agreement(reviews)
    if found is not None:
        shares = f"{publish.in_words(found.percent)} on {found.percent.n} rows"
        say(f"reviewers agree in {shares}; {publish.alpha_words(found.alpha)}")


def push(project: Project, name: str, keep_flagged: bool) -> None:
    """Publish the rows that reviewers decided, and what each of them said."""
    source, reviews, exported = _decided(project, name, None, keep_flagged)
    done = publish.push(project.store, project.hub(say), source, reviews, exported, say)
    click.echo(f"{done.repo}@{done.branch}  {done.url}\n{exported.told()}")
