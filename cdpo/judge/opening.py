"""The judge that a step asks, ready to answer."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cdpo.judge.answers import AnswerStore, Judge
from cdpo.judge.session import Session
from cdpo.store import locks

if TYPE_CHECKING:
    from cdpo.config.judging import JudgeParams
    from cdpo.step import Step

#: seconds between two looks whether another step still asks the same judge
PAUSE = 0.5


@contextmanager
def asking(step: "Step", params: "JudgeParams", top_logprobs: int | None = None) -> Iterator[Session]:
    """A session with the judge of `params`.

    A judge behind an API is asked by one step of a store at a time, so that its limits and its budget are kept;
    meanwhile another waits.
    """
    store = step.work.parent.parent
    with _judge(step, params, store, top_logprobs) as judge, closing(judge):
        yield Session(step, judge, AnswerStore(store), params.attempts, hopeless_too=params.max_missing == 1)


@contextmanager
def _judge(step: "Step", params: "JudgeParams", store: Path, top_logprobs: int | None) -> Iterator[Judge]:
    from cdpo.errors import StepError

    sampling = params.sampling
    if step.device.judge is None and top_logprobs:
        raise StepError("log-probabilities of a verdict come from an API alone: name a judge that one answers for")
    if step.has("judge_plugin"):
        from cdpo.judge.local import PluginJudge

        yield PluginJudge(str(step.input("judge_plugin")), params.judge_identity, alive=step.alive)
    elif step.has("judge"):
        from cdpo.judge.local import LocalJudge
        from cdpo.models import set_threads

        set_threads(step.device)
        loading = {name: getattr(params, name) for name in ("dtype", "attn_implementation", "template")}
        yield LocalJudge(step, params.judge_identity, sampling, loading)
    else:
        from cdpo.judge.api import ApiJudge
        from cdpo.judge.ledger import Ledger, ledger_file

        assert isinstance(params.judge, str)
        if step.device.judge is None:
            raise StepError(f"where is the judge {params.judge!r} to be asked? Its step.json names no endpoint")
        file = ledger_file(store, params.judge)
        file.parent.mkdir(parents=True, exist_ok=True)
        with _turn(step, file.with_suffix(".lock"), params.judge):
            ledger = Ledger(file, step.device.judge["budget"])
            yield ApiJudge(
                params.judge,
                step.device.judge,
                sampling,
                ledger=ledger,
                step=step.key,
                top_logprobs=top_logprobs,
                alive=step.alive,
                note=step.note,
            )


@contextmanager
def _turn(step: "Step", place: Path, judge: str) -> Iterator[None]:
    lock = locks.acquire(place)
    if lock is None:
        step.note(f"another step asks {judge}: waiting for it to finish")
    while lock is None:
        time.sleep(PAUSE)
        step.alive()
        lock = locks.acquire(place)
    try:
        yield
    finally:
        lock.release()
