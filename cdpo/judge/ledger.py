"""What a store has spent on judges: `<store>/judges/<name>.jsonl`, one line per answer that was paid for."""

import time
from pathlib import Path

from cdpo.config.canonical import digest
from cdpo.files import append_json, read_json_lines
from cdpo.judge.answers import Answer

#: of the store; the lock of whoever asks a judge is there too
FOLDER = "judges"


def ledger_file(store: Path, judge: str) -> Path:
    """The ledger of the judge that an API calls `judge`."""
    return store / FOLDER / f"{digest(judge)[:16]}.jsonl"


class Ledger:
    """What was spent on one judge, and what may be."""

    def __init__(self, file: Path, budget: float | None) -> None:
        self.file, self.budget = file, budget
        self.spent = sum(each["dollars"] or 0.0 for each in read_json_lines(file))

    def allows(self, dollars: float) -> bool:
        return self.budget is None or self.spent + dollars <= self.budget

    def paid(self, answer: Answer, step: str) -> None:
        """Write down an answer."""
        self.spent += answer.dollars or 0.0
        used = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
        append_json(self.file, {"time": round(time.time(), 3), "step": step, **used, "dollars": answer.dollars})
