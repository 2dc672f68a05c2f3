"""A file to which a step appends its items as they come, and from which it goes on after it was killed."""

import hashlib
import json
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
        self.items: dict[str, Any] = {}
        self._stream = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self._stream.truncate(self._read())

    def _read(self) -> int:
        """Fill `items`; the number of bytes that are whole lines."""
        self._stream.seek(0)
        whole = 0
        for line in self._stream.read().splitlines(keepends=True):
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            self.items[key] = value
            whole += len(line)
        return whole

    def append(self, key: str, value: Any) -> None:
        append_whole(self._stream.fileno(), json.dumps([key, value], ensure_ascii=False).encode() + b"\n")
        self.items[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self.items

    @classmethod
    def of(cls, step: "Step", name: str) -> Self:
        """The journal `name` of a step. Raises `StepError` where the step was started as several processes."""
        if step.device.processes != 1:
            raise StepError(
                f"{step.pipeline} runs as one process and was started as {step.device.processes}: "
                f"write `pipelines: {{{step.pipeline}: {{processes: 1}}}}` in devices.yaml"
            )
        return cls(step.checkpoints / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
