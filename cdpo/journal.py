"""A file to which a step appends its items as they come, and from which it goes on after it was killed."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cdpo.errors import StepError
from cdpo.files import append_whole

if TYPE_CHECKING:
    from cdpo.step import Step


def item_key(split: str, row: int, *content: Any) -> str:
    """What an item is filed under: its split, its row, and a hash of everything that its result is computed from."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"{split}:{row}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Journal:
    """JSON lines `[key, value]`, one per finished item.

    What a killed writer left behind its last whole line is cut off when the journal is opened, so that the next line
    does not continue a torn one. Lines go to the operating system one by one: a killed process loses none of them. One
    writer at a time; the engine's lock on the step sees to that.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._stream.seek(0)
        self.items, whole = _items(self._stream.read())
        self._stream.truncate(whole)

    def append(self, key: str, value: Any) -> None:
        append_whole(self._stream.fileno(), json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
        self.items[key] = value

    def publish(self, step: "Step", name: str, keys: Iterable[str]) -> None:
        """Leave the items `keys` as what a shard has made: `name` in its `out`."""
        lines = (json.dumps([key, self.items[key]], ensure_ascii=False) + "\n" for key in keys)
        (step.out / name).write_text("".join(lines), encoding="utf-8")

    def __contains__(self, key: str) -> bool:
        return key in self.items

    @classmethod
    def of(cls, step: "Step", name: str) -> Self:
        """The journal `name` of a step, and in it what its shards have made, or those of another cut of it.

        Raises `StepError` where the step was started as several processes.
        """
        if step.device.processes != 1:
            raise StepError(
                f"{step.pipeline} runs as one process and was started as {step.device.processes}: "
                f"write `pipelines: {{{step.pipeline}: {{processes: 1}}}}` in devices.yaml"
            )
        journal = cls(step.checkpoints / name)
        for part in step.input_files("earlier") if step.has("earlier") else ():
            # one that had not begun has none, and one that is finished meanwhile has it elsewhere
            with contextlib.suppress(FileNotFoundError):
                journal.items |= _items((part / name).read_bytes())[0]
        for part in step.input_files("shards") if step.has("shards") else ():
            journal.items |= _items((part / name).read_bytes())[0]
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def _items(written: bytes) -> tuple[dict[str, Any], int]:
    """The items of a journal, and how many of its bytes are whole lines."""
    items, whole = {}, 0
    for line in written.splitlines(keepends=True):
        try:
            key, value = json.loads(line)
        except (ValueError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        items[key] = value
        whole += len(line)
    return items, whole
