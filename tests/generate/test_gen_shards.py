"""GEN cut into shards: every row once, and the joined result that of the step uncut."""

from typing import Any

import pytest

from cdpo.files import read_json_lines
from cdpo.generate import transformers_backend
from cdpo.generate.responses import read_responses
from cdpo.pipelines.gen import run
from cdpo.step import Step


@pytest.fixture
def whole(gen_step: Any) -> list[dict[str, Any]]:
    step = gen_step("whole", samples=2, limit=11, max_new_tokens=8)
    run(step)
    return read_responses(step.out)


def shard_of(step: Step, index: int, count: int) -> Step:
    step.shard = {"of": "0" * 64, "index": index, "count": count}
    return step


def alike(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    assert [each["logprobs"] for each in ours] == [pytest.approx(each["logprobs"], abs=1e-4) for each in theirs]
    assert [{**each, "logprobs": None} for each in ours] == [{**each, "logprobs": None} for each in theirs]


@pytest.mark.parametrize("count", [2, 3, 20])
def test_shards_join_to_the_whole(gen_step, whole, count, monkeypatch):
    """11 prompts over 2, over 3 and over 20 devices: of the last, some have none, and those load no model."""
    parts = []
    for index in range(count):
        part = shard_of(gen_step(f"part{index}", samples=2, limit=11, max_new_tokens=8), index, count)
        if count == 20 and not part.share([str(at) for at in range(11)]):
            with monkeypatch.context() as patched:
                patched.setattr("cdpo.models.load_policy", None)
                run(part)
        else:
            run(part)
        assert [path.name for path in part.out.iterdir()] == ["responses.jsonl"]
        parts.append(part)
    keys = [key for part in parts for key, _ in read_json_lines(part.out / "responses.jsonl")]
    assert len(keys) == len(set(keys)) == 22
    sizes = [sum(1 for _ in read_json_lines(part.out / "responses.jsonl")) // 2 for part in parts]
    assert max(sizes) - min(sizes) <= 1
    joined = gen_step("joined", samples=2, limit=11, max_new_tokens=8)
    joined.inputs = {**joined.inputs, "shards": [str(part.out) for part in parts]}
    monkeypatch.setattr("cdpo.models.load_policy", None)
    summary = run(joined)
    alike(read_responses(joined.out), whole)
    assert summary["responses"] == 22


def test_a_row_that_a_shard_lost_is_answered_when_they_are_joined(gen_step, whole):
    parts = [shard_of(gen_step(f"p{index}", samples=2, limit=11, max_new_tokens=8), index, 2) for index in range(2)]
    for part in parts:
        run(part)
    file = parts[1].out / "responses.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:-3]))
    joined = gen_step("joined", samples=2, limit=11, max_new_tokens=8)
    joined.inputs = {**joined.inputs, "shards": [str(part.out) for part in parts]}
    run(joined)
    alike(read_responses(joined.out), whole)


def test_another_cut_goes_on_from_what_was_made(gen_step, whole, monkeypatch):
    """One part of two is finished, the other is in the middle: three parts answer what is missing, once."""
    first, second = (shard_of(gen_step(f"half{at}", samples=2, limit=11, max_new_tokens=8), at, 2) for at in range(2))
    run(first)
    run(second)
    half = second.checkpoints / "responses.jsonl"
    half.write_text("".join(line + "\n" for line in half.read_text().splitlines()[:4]) + '["eval:3:ab", {"resp')
    asked = []
    original = transformers_backend._answer
    monkeypatch.setattr(
        transformers_backend,
        "_answer",
        lambda model, items, *rest: asked.extend(items) or original(model, items, *rest),
    )
    parts = []
    for index in range(3):
        part = shard_of(gen_step(f"third{index}", micro_batch=1, samples=2, limit=11, max_new_tokens=8), index, 3)
        part.inputs = {**part.inputs, "earlier": [str(first.out), str(second.checkpoints), str(part.work / "none")]}
        run(part)
        parts.append(part)
    known = sum(1 for _ in read_json_lines(first.out / "responses.jsonl")) + 4
    assert len(asked) == 22 - known
    joined = gen_step("joined", samples=2, limit=11, max_new_tokens=8)
    joined.inputs = {**joined.inputs, "shards": [str(part.out) for part in parts]}
    run(joined)
    alike(read_responses(joined.out), whole)


def test_all_shards_refuse_what_the_whole_would(gen_step):
    """What share of the prompts does not fit is judged over all of them, not over a shard's."""
    from cdpo.errors import StepError

    for index in range(2):
        with pytest.raises(StepError, match="50 of 50 prompts"):
            run(shard_of(gen_step(f"long{index}", max_new_tokens=505), index, 2))
