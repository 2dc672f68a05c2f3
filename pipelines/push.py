"""PUSH: publish what a run made under its name: its model, its responses and their scores.

The model goes to a repository of the run's name, on a branch named after the tag, with the curves of its training as
a picture; responses and scores go to a dataset of its own, as a config named after the tag. Both come with a card, and
beside the responses (of a run that has none: beside the model) lies what the viewer reads of its steps.
Where to is said by `configs/services/huggingface.yaml` (cdpo/config/hub.py): a folder, or the Hugging Face Hub.

out/pushed.json: a list of {kind, repo, branch, commit, url}.

What was published stays in the store too. A step that was killed is made again, and sends what is not there yet.
"""

import json
from typing import Any, Literal

from pydantic import Field

from cdpo.config.params import Params
from cdpo.pipeline import Pipeline
from cdpo.step import Step, run_by_hand


class PUSHParams(Params):
    """Where a run is published. All but `private` is made of the run's name, its tag and the settings of the hub."""

    run: str
    tag: str
    hub: Literal["local", "huggingface"]
    owner: str | None = None
    """Whose the repositories are; without it the owner of the token."""
    root: str | None = None
    """The folder of a local hub, where it is not in the store."""
    model_repo: str
    evaluation_repo: str
    collections: dict[str, str | None] = Field(default_factory=dict)
    private: bool = True


PIPELINE = Pipeline(
    name="PUSH",
    version=3,
    params=PUSHParams,
    takes={"model": "trained", "responses": "responses", "scores": "scores", "verdicts": "verdicts"},
    optional=("model", "responses", "scores", "verdicts"),
    gives="pushed",
    rank=90,
    seeded=False,
    publishes=True,
    online=True,
)


def run(step: Step) -> dict[str, Any]:
    from dataclasses import asdict

    from cdpo.files import write_json
    from cdpo.hub.cards import branches_card, evaluation_card, index_card, model_card
    from cdpo.hub.contents import evaluation_files, model_files
    from cdpo.hub.curves import CURVES, curves_of
    from cdpo.hub.lineage import Lineage
    from cdpo.hub.open import open_hub
    from cdpo.hub.recipe import RECIPE, recipe_of
    from cdpo.hub.shown import viewer_files
    from cdpo.store import Store

    params = PUSHParams(**step.params)
    store = Store(step.work.parent.parent)
    hub = open_hub(params, store, step.note)
    lineage = Lineage.of(store, step, params.run, params.tag)
    recipe = (json.dumps(recipe_of(lineage), indent=1) + "\n").encode()
    shown = viewer_files(store, lineage) if lineage.ref else {}
    made = []
    if step.has("model"):
        files, base = model_files(step)
        curves, brought = curves_of(lineage), sorted(name for name in files if name.endswith(".py"))
        card = model_card(lineage, base, hub.id_of(params.model_repo), curves is not None, brought)
        files |= {"README.md": card.encode(), RECIPE: recipe, **({CURVES: curves} if curves else {})}
        files |= {} if step.has("responses") else shown
        step.note(f"publishing the model {params.model_repo}@{params.tag} ({params.hub})")
        made.append(("model", hub.replace("model", params.model_repo, params.tag, files)))
        hub.index(params.model_repo, branches_card(hub.id_of(params.model_repo)))
    if step.has("responses"):
        files = evaluation_files(step)
        card = evaluation_card(lineage, hub.id_of(params.evaluation_repo))
        files |= {"README.md": card.encode(), RECIPE: recipe, **shown}
        step.note(f"publishing the evaluation {params.evaluation_repo}, config {params.tag} ({params.hub})")
        published = hub.put_folder("dataset", params.evaluation_repo, params.tag, files, index_card(params.run))
        made.append(("dataset", published))
    for kind, published in made:
        title = params.collections.get("models" if kind == "model" else "evaluations")
        if title:
            hub.collect(title, "model" if kind == "model" else "dataset", published.repo)
    pushed = [{"kind": kind, **asdict(published)} for kind, published in made]
    write_json(step.out / "pushed.json", pushed)
    return {"pushed": pushed}


if __name__ == "__main__":
    run_by_hand(run)
