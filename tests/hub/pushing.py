"""`python -m tests.hub.pushing`: publishes by cdpo's hub in a process of its own, as a test says it (JSON on stdin).

{"owner", "room", "calls": [["replace", kind, name, branch, {path: text}] | ["put_folder", kind, name, folder, {...}] |
["index", name] | ["remove", kind, repo, tag] | ["collect", title, kind, repo]]}; prints {"found": what each call gave,
"notes"}.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from cdpo.errors import CdpoError
from cdpo.hub import huggingface
from cdpo.hub.cards import branches_card
from cdpo.hub.huggingface import HuggingFaceHub


def main() -> None:
    asked = json.load(sys.stdin)
    huggingface.LONGEST_PAUSE = asked.get("longest_pause", 1.0)
    notes: list[str] = []
    hub = HuggingFaceHub(asked.get("owner"), Path(asked["room"]), note=notes.append)
    found = []
    for call, *words in asked["calls"]:
        try:
            if call == "replace":
                kind, name, branch, files = words
                found.append(
                    asdict(hub.replace(kind, name, branch, {path: text.encode() for path, text in files.items()}))
                )
            elif call == "put_folder":
                kind, name, folder, files = words
                content = {path: text.encode() for path, text in files.items()}
                found.append(asdict(hub.put_folder(kind, name, folder, content, lambda paths: "\n".join(paths))))
            elif call == "remove":
                found.append(hub.carried(*words))
                hub.remove(*words, branches_card(words[1]) if words[0] == "model" else lambda paths: "\n".join(paths))
            elif call == "index":
                (name,) = words
                found.append(hub.index(name, branches_card(hub.id_of(name))))
            else:
                hub.collect(*words)
                found.append(None)
        except CdpoError as error:
            found.append({"error": str(error)})
    json.dump({"found": found, "notes": notes}, sys.stdout)


if __name__ == "__main__":
    main()
