"""A review as a dataset on the hub: the rows that reviewers decided, what each of them said, and a card."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from cdpo.config.hub import HubSettings, repo_name
from cdpo.errors import UsageError
from cdpo.hub.markdown import code, plain, table
from cdpo.hub.open import open_hub
from cdpo.hub.repos import Published
from cdpo.review.acts import Reviews
from cdpo.review.export import Exported, as_bytes, said
from cdpo.review.sources import Source
from cdpo.review.summary import agreement, progress
from cdpo.stats.intervals import Estimate
from cdpo.store import Store

#: of the repository: the rows, one file per split
DATA = "data"
#: what the card is tagged with; not as runs are, which the viewer of a namespace looks for
TAG = "cdpo-review"
#: beside them: what every reviewer said, also of rows that are not exported
VOTES = "votes.jsonl"


class _Where:
    def __init__(self, hub: HubSettings) -> None:
        self.hub, self.owner, self.root, self.private = hub.where, hub.owner, hub.root, hub.private


def default_name(source: Source, hub: HubSettings) -> str:
    """What the repository is called."""
    return repo_name(f"{hub.prefix.evaluations}review-{source.name.replace('/', '-')}-{source.key}")


def push(
    store: Store,
    hub: HubSettings,
    source: Source,
    reviews: Reviews,
    exported: Exported,
    note: Callable[[str], None],
) -> Published:
    """Publish a review; the same repository holds its newest state. Raises UsageError where nothing is decided yet,
    CdpoError where the hub cannot be reached or refuses."""
    if not exported.rows:
        raise UsageError("nothing to publish: no reviewed row has a majority for a response yet")
    hub.use_token()
    files: dict[str, Any] = {f"{split}.parquet": as_bytes(rows, ".parquet") for split, rows in exported.splits.items()}
    files[VOTES] = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in said(reviews)).encode()
    return open_hub(_Where(hub), store, note).put_folder(
        "dataset", default_name(source, hub), DATA, files, card(source, reviews, exported)
    )


def card(source: Source, reviews: Reviews, exported: Exported) -> Callable[[Sequence[str]], str]:
    """What README.md says, given the paths of all other files."""

    def text(paths: Sequence[str]) -> str:
        tables = [path for path in paths if path.startswith(f"{DATA}/") and path.endswith(".parquet")]
        files = [{"split": path.split("/")[1].removesuffix(".parquet"), "path": path} for path in tables]
        head = {"tags": [TAG, "human-feedback"], "configs": [{"config_name": "default", "data_files": files}]}
        front = f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"
        return front + "\n".join(_lines(source, reviews, exported)) + "\n"

    return text


def _lines(source: Source, reviews: Reviews, exported: Exported) -> list[str]:
    columns = "`prompt`, `completion` and `label`" if source.single else "`prompt`, `chosen` and `rejected`"
    what = "Responses of" if source.single else "Pairs of"
    done = progress(reviews)
    lines = [f"# Review of {plain(source.name)}", ""]
    lines += [f"{what} {code(source.label)} (step {code(source.key)}) as people voted on them, with {columns}.", ""]
    lines += [f"Exported: {plain(exported.told())}.", "", "## Reviewers", ""]
    lines += table(["reviewer", ">votes"], [[plain(who), str(count)] for who, count in done.voted.items()])
    lines += ["", f"{done.rows} rows were reviewed, {done.flagged} of them flagged.", "", "## Agreement", ""]
    found = agreement(reviews)
    if found is None:
        lines += ["No row has votes of two reviewers, so nothing is known of their agreement."]
    else:
        lines += [f"On {found.percent.n} rows with two votes or more: {in_words(found.percent)} of the pairs of votes"]
        lines += ["are the same; " + alpha_words(found.alpha) + "."]
    lines += ["", f"`{DATA}/{VOTES}` holds every vote, flag and note."]
    return lines


def in_words(share: Estimate) -> str:
    """`80 % (61 to 91)`"""
    between = f" ({100 * share.low:.0f} to {100 * share.high:.0f})" if share.low is not None and share.high else ""
    return f"{100 * share.mean:.0f} %{between}"


def alpha_words(value: float | None) -> str:
    if value is None:
        return "all votes are the same, so Krippendorff's alpha is not defined"
    return f"Krippendorff's alpha {value:.2f} (1: perfect, 0: as by chance)"
