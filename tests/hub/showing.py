"""`python -m tests.hub.showing publish STORE ROOM RUN...` publishes runs as PUSH does, but for their weights;
`python -m tests.hub.showing mirror NAMESPACE` prints the folder of the store that shows them, and what could not be
read; or {"error"}."""

import json
import sys
from pathlib import Path

from cdpo.errors import CdpoError
from cdpo.hub.cards import evaluation_card, index_card
from cdpo.hub.huggingface import HuggingFaceHub
from cdpo.hub.lineage import Lineage
from cdpo.hub.mirror import mirror, problems
from cdpo.hub.shown import viewer_files
from cdpo.store import Store


def publish(root: str, room: str, *runs: str) -> None:
    store = Store(Path(root))
    hub = HuggingFaceHub(None, Path(room), note=lambda text: None)
    for ref in store.read_refs():
        if f"{ref['tag']}/{ref['name']}" not in runs:
            continue
        lineage = Lineage.of_run(store, ref)
        answers = next(store.find(key) for key in ref["steps"] if store.find(key).parent.name == "GEN")
        files = {
            "README.md": evaluation_card(lineage, hub.id_of(ref["name"])).encode(),
            "eval.parquet": answers / "out" / "responses.parquet",
            **viewer_files(store, lineage),
        }
        hub.put_folder("dataset", ref["name"], ref["tag"], files, index_card(ref["name"]))


def main() -> None:
    if sys.argv[1] == "publish":
        publish(*sys.argv[2:])
        return
    said: list[str] = []
    try:
        store = mirror(sys.argv[2], said.append)
        print(json.dumps({"root": str(store.root), "said": said, "problems": problems(store)}))
    except CdpoError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
