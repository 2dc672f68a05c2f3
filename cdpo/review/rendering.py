"""A row as a training step sees it: its tokens, and which of them the loss counts.

This is done in a process of its own, which answers until its input ends: reading a tokenizer as training does imports
torch, and a viewer should stay small. Code that a model brings is not run.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdpo.errors import CdpoError, DamagedFile, UsageError
from cdpo.files import read_json
from cdpo.pipeline import pipelines
from cdpo.review.rows import is_answer
from cdpo.store import Store
from cdpo.store.names import short

#: tokens of a prompt or of a response that are told at most
MOST = 1500
#: what a tokenizer cannot be read without
_TOKENIZER = "tokenizer_config.json"


def trained_on(
    store: Store, refs: Sequence[Mapping[str, Any]], key: str, kinds: Container[str] = ("policy", "reward")
) -> dict[str, Path]:
    """The finished steps that made a model (a resource of `kinds`), of runs that go through the step `key`:
    `PIPELINE/step` -> its folder."""
    finished, known = store.finished(), pipelines()
    found = {}
    for ref in refs:
        keys = [short(each) for each in ref["steps"]]
        for folder in (finished[each] for each in keys if each in finished) if short(key) in keys else ():
            name = folder.parent.name
            if name in known and known[name].gives in kinds:
                found[f"{name}/{folder.name}"] = folder
    return dict(sorted(found.items()))


def request(folder: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of the process about a row and the step in `folder`. Raises UsageError where its tokenizer is not
    on this machine."""
    if not (folder / "out" / _TOKENIZER).is_file():
        raise UsageError(f"{folder}/out holds no tokenizer: it was evicted, or is kept on the hub alone")
    try:
        step = read_json(folder / "step.json")
        params = step["params"]
    except (OSError, DamagedFile, KeyError, TypeError) as error:
        raise UsageError(f"{folder}/step.json cannot be read: {error}") from error
    responses = [row[name][0]["content"] for name in ("chosen", "rejected") if row.get(name)]
    if is_answer(row):
        responses = [row["response"]]
    return {
        "folder": str(folder / "out"),
        "template": params.get("template"),
        "max_length": params.get("max_length"),
        "prompt": row["prompt"],
        "responses": responses,
    }


def counts(folder: Path) -> tuple[bool, str]:
    """Of the step in `folder`: whether its loss counts the prompt's tokens too, and what it counts, in words."""
    name = folder.parent.name
    if pipelines()[name].gives == "reward":
        return False, "The reward is read at the last token of each response; the loss compares the two rewards."
    if name != "SFT":
        return False, "The loss counts the tokens of both responses; those of the prompt only lead up to them."
    if read_json(folder / "step.json")["params"].get("loss") == "all":
        return True, "The loss counts every token, those of the prompt too; only the chosen response is learned from."
    return False, "The loss counts the tokens of the chosen response; those of the prompt only lead up to it."


class Renderer:
    """The process, started when it is first asked. Any thread may ask; one is answered after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._alone = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """{"prompt": [[text, special], ...], "responses": [the same of each], "lengths": [tokens of all of these],
        "limit": tokens that a row may have, or None, "left_out": why the row is not trained on, or None}.

        Raises CdpoError for what keeps the row from being shown.
        """
        with self._alone:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "cdpo.review.rendering"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                )
            process = self._process
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                self._process = None
                process.kill()
                raise CdpoError("the process that reads tokenizers ended; what it said is in the viewer's own output")
            answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CdpoError(answer["error"])
        return answer

    def close(self) -> None:
        with self._alone:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None


def rendered(request: Mapping[str, Any], tokenizers: dict[tuple[str, Any], Any]) -> dict[str, Any]:
    """The answer to one request; `tokenizers` are those read so far."""
    from cdpo.data.tokens import encode_rows
    from cdpo.models import load_tokenizer
    from cdpo.train.rows import context

    folder = Path(request["folder"])
    known = (request["folder"], request["template"])
    if known not in tokenizers:
        tokenizers[known] = load_tokenizer(folder, None, request["template"])
    tokenizer = tokenizers[known]
    (row,) = encode_rows(tokenizer, [(request["prompt"], request["responses"])])
    (prompt,) = encode_rows(tokenizer, [(request["prompt"], [])])
    assert prompt is not None
    responses = [] if row is None else row.response_ids
    limit = context(folder, request["max_length"]) if (folder / "config.json").is_file() else None
    left_out = None
    if row is None:
        left_out = "a response spells a special token of this model"
    elif limit is not None and (longest := len(prompt.prompt_ids) + max(map(len, responses), default=0)) > limit:
        left_out = f"it has {longest} tokens with its longer response, and the model takes {limit}"
    return {
        "prompt": pieces(tokenizer, prompt.prompt_ids[:MOST]),
        "responses": [pieces(tokenizer, ids[:MOST]) for ids in responses],
        "lengths": [len(prompt.prompt_ids), *map(len, responses)],
        "limit": limit,
        "left_out": left_out,
    }


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[tuple[str, bool]]:
    """The text of every token where it stands, and whether it is special; a token that ends inside a letter has none,
    and the one that completes it has the letter."""
    special = {*tokenizer.all_special_ids}

    def text(begin: int, end: int) -> str:
        decoded: str = tokenizer.decode(ids[begin:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return decoded

    found, before, read = [], 0, 0
    for at, each in enumerate(ids, start=1):
        known, now = text(before, read), text(before, at)
        piece = ""
        if len(now) > len(known) and (not now.endswith("\ufffd") or at == len(ids)):
            piece = now[len(known) :]
            before, read = read, at
        found.append((piece, each in special))
    return found


def main() -> None:
    tokenizers: dict[tuple[str, Any], Any] = {}
    for line in sys.stdin:
        try:
            answer = rendered(json.loads(line), tokenizers)
        except CdpoError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
