"""GEN as a step: batch sizes, kills, limits, what does not fit, and what it leaves."""

import json
import signal
import subprocess
import sys
import time

import pytest
from pydantic import ValidationError

from cdpo.data.messages import user
from cdpo.errors import StepError
from cdpo.files import read_json_lines
from cdpo.generate.responses import choose, read_responses
from cdpo.pipelines.gen import GENParams, run


@pytest.fixture
def whole(gen_step):
    """The rows of an uninterrupted step."""
    step = gen_step("whole")
    run(step)
    return read_responses(step.out)


def alike(ours, theirs):
    """The same rows; a batch rounds log-probabilities in its own way."""
    assert [each["logprobs"] for each in ours] == [pytest.approx(each["logprobs"], abs=1e-4) for each in theirs]
    return [{**each, "logprobs": None} for each in ours] == [{**each, "logprobs": None} for each in theirs]


def test_one_row_per_prompt_in_order_with_its_own_prompt(whole, data_folder):
    from cdpo.data.prepared import read_split

    rows = read_split(data_folder, "eval")
    assert [each["prompt_id"] for each in whole] == [row["prompt_id"] for row in rows]
    assert [each["prompt"] for each in whole] == [row["prompt"] for row in rows]
    assert [each["chosen"] for each in whole] == [row["chosen"] for row in rows]
    assert {each["split"] for each in whole} == {"eval"}
    assert {each["finish_reason"] for each in whole} <= {"stop", "length"}
    for each in whole:
        assert "<|end|>" not in each["response"]
        assert each["response_tokens"] <= 24
        assert (each["response_tokens"] == 24) or each["finish_reason"] == "stop"
        assert len(each["token_ids"]) == each["response_tokens"] + (each["finish_reason"] == "stop")
        assert len(each["logprobs"]) == len(each["token_ids"])
        assert max(each["logprobs"]) <= 0
        assert (each["sample"], each["temperature"]) == (0, 1.0)


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_another_batch_size_gives_the_same_rows(gen_step, whole, micro_batch):
    step = gen_step(f"batch{micro_batch}", micro_batch=micro_batch)
    run(step)
    assert alike(read_responses(step.out), whole)


def test_another_seed_gives_other_rows(gen_step, whole):
    step = gen_step("seed1", seed=1)
    run(step)
    differ = [one["response"] != other["response"] for one, other in zip(read_responses(step.out), whole, strict=True)]
    assert sum(differ) > 45


def test_a_killed_step_goes_on_and_gives_the_same_rows(gen_step, whole):
    """A real process, SIGKILL after some responses; its torn last line is passed over."""
    step = gen_step("killed", micro_batch=2)
    journal = step.checkpoints / "responses.jsonl"
    code = (
        "import sys, time\nfrom pathlib import Path\nimport cdpo.generate.transformers_backend as backend\n"
        "from cdpo.pipelines.gen import run\nfrom cdpo.step import Step\n"
        "draw = backend.draw\n"
        "backend.draw = lambda *given: (time.sleep(0.01), draw(*given))[1]\n"
        "run(Step.read(Path(sys.argv[1])))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(step.work)])
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 9:
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    known = journal.read_bytes().count(b"\n")
    assert 9 <= known < 50
    with open(journal, "ab") as stream:
        stream.write(b'["eval:7:abc", {"respon')
    run(step)
    assert alike(read_responses(step.out), whole)
    lines = list(read_json_lines(journal))
    assert len(lines) == len({key for key, _ in lines}) == 50
    events = [each for each in read_json_lines(step.work / "events.jsonl") if each["event"] == "note"]
    assert f"going on after {known} of 50" in events[-1]["text"]


def test_what_was_computed_from_something_else_is_not_taken_over(gen_step, whole):
    step = gen_step("stale")
    step.checkpoints.mkdir()
    stale = [f"eval:{row}:0123456789abcdef" for row in range(50)]
    lines = (json.dumps([key, {"response": "stale", "response_tokens": 1, "finish_reason": "stop"}]) for key in stale)
    (step.checkpoints / "responses.jsonl").write_text("\n".join(lines) + "\n")
    run(step)
    assert alike(read_responses(step.out), whole)


@pytest.mark.fault(17)
def test_a_limit_draws_the_same_prompts_for_every_seed(gen_step, whole):
    chosen = []
    for name, seed, limit in (("a", 0, 10), ("b", 1, 10), ("c", 0, 20)):
        step = gen_step(name, seed=seed, limit=limit)
        run(step)
        chosen.append(read_responses(step.out))
    ids = [[each["prompt_id"] for each in rows] for rows in chosen]
    assert ids[0] == ids[1]
    assert set(ids[0]) < set(ids[2])
    # neither the first rows of the split, nor other responses than without a limit
    assert ids[0] != [each["prompt_id"] for each in whole[:10]]
    at = {row["prompt_id"]: row for row in whole}
    assert all(alike(rows, [at[row["prompt_id"]] for row in rows]) for rows in (chosen[0], chosen[2]))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"backend": "vllm", "batching": "continuous"}, "batching is how transformers batches"),
        ({"backend": "transformers", "endpoint": "chat"}, "endpoint is a server's"),
        ({"backend": "vllm", "attn_implementation": "eager"}, "vLLM chooses its own"),
        ({"backend": "llama.cpp"}, "Input should be"),
    ],
)
def test_options_belong_to_their_backend(given, said):
    with pytest.raises(ValidationError, match=said):
        GENParams(**given)


def test_a_stop_token_ends_a_response_and_is_no_part_of_it(gen_step, whole):
    """The commonest word of the responses, as a stop token: they end where it first stood."""
    from collections import Counter

    from cdpo.models import load_tokenizer

    step = gen_step("stops")
    tokenizer = load_tokenizer(step.input("model"))
    (most, _), *_ = Counter(token for row in whole for token in row["token_ids"] if token > 6).most_common(1)
    word = tokenizer.convert_ids_to_tokens(most)
    step.params = {**step.params, "stop_tokens": [word]}
    run(step)
    ended = 0
    for row, before in zip(read_responses(step.out), whole, strict=True):
        ids = before["token_ids"]
        cut = ids[: ids.index(most) + 1] if most in ids else ids
        assert row["token_ids"] == cut
        ended += most in ids
        assert row["finish_reason"] == ("stop" if most in ids else before["finish_reason"])
        assert row["response_tokens"] == len(cut) - (row["finish_reason"] == "stop")
    assert ended >= 5
    with pytest.raises(StepError, match="'no such word' is no token"):
        run(gen_step("unknown", stop_tokens=["no such word"]))


def test_choose_keeps_the_order_of_the_split():
    rows = [{"prompt_id": str(at)} for at in range(30)]
    assert choose(rows, None) == choose(rows, 30) == list(range(30))
    assert choose(rows, 7) == sorted(choose(rows, 7))


def test_prompts_that_do_not_fit_are_refused_or_counted(gen_step, data_folder, tmp_path):
    with pytest.raises(StepError, match=r"50 of 50 prompts of 'eval' do not fit.*max_new_tokens=505"):
        run(gen_step("long", max_new_tokens=505))
    from cdpo.data.prepared import read_split, write_split

    rows = read_split(data_folder, "eval")
    rows[3] = {**rows[3], "prompt": [user("list " * 490)]}
    write_split(tmp_path / "longer", "eval", rows)
    step = gen_step("one_long")
    step.inputs = {**step.inputs, "data": str(tmp_path / "longer")}
    summary = run(step)
    assert (summary["responses"], summary["dropped_too_long"]) == (49, 1)
    assert rows[3]["prompt_id"] not in {each["prompt_id"] for each in read_responses(step.out)}


def test_greedy_ignores_the_seed(gen_step):
    found = []
    for seed in (0, 1):
        step = gen_step(f"greedy{seed}", seed=seed, do_sample=False, limit=5)
        run(step)
        found.append([each["response"] for each in read_responses(step.out)])
    assert found[0] == found[1]


@pytest.mark.fault(24)
def test_every_setting_counts_whatever_the_others_are(gen_step):
    """The released package dropped all of them but one where contrastive search was off."""

    def tokens(name, **settings):
        step = gen_step(name, limit=5, **settings)
        run(step)
        return [(each["response"], each["response_tokens"]) for each in read_responses(step.out)]

    greedy = tokens("greedy", do_sample=False)
    assert max(count for _, count in greedy) > 3
    assert max(count for _, count in tokens("short_greedy", do_sample=False, max_new_tokens=3)) == 3
    assert max(count for _, count in tokens("short", max_new_tokens=3)) == 3
    usual = tokens("usual")
    assert usual != greedy
    for name, settings in (("k", {"top_k": 1}), ("p", {"top_p": 1e-9}), ("cold", {"temperature": 1e-6})):
        assert tokens(name, **settings) == greedy, "the best token each time"
    for name, settings in (("k8", {"top_k": 8}), ("p5", {"top_p": 0.5}), ("warm", {"temperature": 3.0})):
        assert tokens(name, **settings) not in (usual, greedy)


def test_the_first_samples_of_many_are_those_of_few(gen_step, whole):
    step = gen_step("many", samples=3)
    assert run(step)["responses"] == 150
    rows = read_responses(step.out)
    assert [row["sample"] for row in rows] == [0, 1, 2] * 50
    assert alike(rows[::3], whole)
    assert len({row["seed"] for row in rows}) == 150
    assert sum(rows[at]["response"] != rows[at + 1]["response"] for at in range(0, 150, 3)) > 45


def test_a_mixture_of_temperatures(gen_step, whole):
    step = gen_step("mixture", samples=[{"k": 1, "temperature": 1.0}, {"k": 2, "temperature": 0.5}], limit=20)
    run(step)
    rows = read_responses(step.out)
    assert [row["temperature"] for row in rows] == [1.0, 0.5, 0.5] * 20
    at = {row["prompt_id"]: row for row in whole}
    assert alike(rows[::3], [at[row["prompt_id"]] for row in rows[::3]])
    cold = gen_step("cold_three", samples=3, temperature=0.5, limit=20)
    run(cold)
    alone = read_responses(cold.out)
    assert all(alike(rows[place::3], alone[place::3]) for place in (1, 2))


def test_a_killed_step_of_several_samples_has_every_response_once(gen_step):
    whole, cut = gen_step("uncut", samples=2, limit=10), gen_step("cut", samples=2, limit=10, micro_batch=3)
    run(whole)
    run(cut)
    journal = cut.checkpoints / "responses.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:7]))
    run(cut)
    assert alike(read_responses(cut.out), read_responses(whole.out))


def test_several_processes_are_refused(gen_step):
    with pytest.raises(StepError, match=r"GEN: \{processes: 1\}"):
        run(gen_step("two", processes=2))


def test_parameters():
    assert GENParams(split="tune", temperature=0.7, dtype="bf16").split == "tune"
    with pytest.raises(ValueError, match="do_sample is false"):
        GENParams(do_sample=False, top_k=4)
    with pytest.raises(ValueError):
        GENParams(split="test")
    assert GENParams(samples=3, temperature=0.7).temperatures == [0.7] * 3
    assert GENParams(samples=[{"k": 2, "temperature": 0.3}, {"k": 1, "temperature": 1}]).temperatures == [0.3, 0.3, 1.0]
    with pytest.raises(ValueError, match="one response to a prompt"):
        GENParams(samples=2, do_sample=False)
    with pytest.raises(ValueError, match="its own temperature"):
        GENParams(samples=[{"k": 2, "temperature": 0.3}], temperature=0.7)
    for samples in (0, -1, True, [], [{"k": 0, "temperature": 1.0}], [{"temperature": 1.0}], [{"k": 1}]):
        with pytest.raises(ValueError):
            GENParams(samples=samples)
