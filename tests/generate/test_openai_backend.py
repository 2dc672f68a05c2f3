"""The client against a real server over a real model: what comes back, and what is done where nothing does."""

import time
from collections import Counter
from typing import Any

import pytest
import torch
from openai_server import OpenAIServer

from cdpo.config.params import SamplingParams
from cdpo.errors import StepError
from cdpo.generate.backend import Item, Sampled
from cdpo.generate.endpoint import Address, Endpoint
from cdpo.generate.openai_backend import OpenAIBackend
from cdpo.generate.transformers_backend import generate


@pytest.fixture(scope="module")
def tokenizer(model_folder: Any) -> Any:
    from cdpo.models import load_tokenizer

    return load_tokenizer(model_folder)


@pytest.fixture(scope="module")
def asked(tokenizer: Any, data_folder: Any) -> list[Item]:
    from cdpo.data.prepared import read_split
    from cdpo.data.tokens import encode_prompt

    prompts = [row["prompt"] for row in read_split(data_folder, "eval")[:24]]
    return [Item(encode_prompt(tokenizer, each), at * 7919 + 2**40, None, each) for at, each in enumerate(prompts)]


@pytest.fixture(scope="module")
def ends(tokenizer: Any) -> list[int]:
    from cdpo.generate.ends import end_ids

    return end_ids(tokenizer)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are made again after a twentieth of a second at first."""
    monkeypatch.setattr("cdpo.generate.endpoint.FIRST_PAUSE", 0.05)


GREEDY = SamplingParams(do_sample=False, max_new_tokens=12)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, max_new_tokens=12)


def backend(
    server: OpenAIServer, tokenizer: Any, *, concurrency: int = 4, retries: int = 4, timeout: float = 20, **options
):
    where = Address(server.url, "tiny")
    endpoint = Endpoint(lambda: where, concurrency=concurrency, timeout=timeout, retries=retries)
    return OpenAIBackend(endpoint, tokenizer, server=server.kind, **options)


def answers(made: OpenAIBackend, asked: list[Item], sampling: SamplingParams, ends: list[int]) -> list[Sampled]:
    try:
        found = list(made.generate(asked, sampling, end_ids=ends))
    finally:
        made.close()
    assert Counter(at for at, _ in found) == Counter(range(len(asked)))
    return [sampled for _, sampled in sorted(found)]


@pytest.fixture
def expected(model: Any, asked: list[Item], ends: list[int]) -> Any:
    def of(sampling: SamplingParams) -> list[Sampled]:
        found = dict(generate(model, asked, sampling, end_ids=ends, pad_id=0, batch_size=len(asked)))
        return [found[at] for at in range(len(asked))]

    return of


def test_greedy_is_that_of_transformers_token_for_token(model, tokenizer, asked, ends):
    with OpenAIServer(model, tokenizer) as server:
        ours = answers(backend(server, tokenizer), asked, GREEDY, ends)
    for item, sampled in zip(asked, ours, strict=True):
        prompt = torch.tensor([item.prompt_ids])
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=ends,
            pad_token_id=0,
        )
        assert sampled.token_ids == theirs[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_server_that_tells_token_ids(model, tokenizer, asked, ends, expected, sampling):
    with OpenAIServer(model, tokenizer) as server:
        ours = answers(backend(server, tokenizer), asked, sampling, ends)
        assert server.most == 4
    for mine, theirs in zip(ours, expected(sampling), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", ["openai", "transformers"])
@pytest.mark.parametrize("route", ["completions", "chat"])
def test_a_server_that_tells_texts_alone(model, tokenizer, asked, ends, expected, kind, route):
    with OpenAIServer(model, tokenizer, kind=kind) as server:
        ours = answers(backend(server, tokenizer, route=route, concurrency=1), asked, SAMPLED, ends)
        if kind == "transformers" and route == "completions":
            assert all(isinstance(body["prompt"], str) for body in server.bodies)
    for mine, theirs in zip(ours, expected(SAMPLED), strict=True):
        content = theirs.token_ids[:-1] if theirs.finish_reason == "stop" else theirs.token_ids
        assert mine.token_ids is None
        assert mine.text == tokenizer.decode(content, skip_special_tokens=True)
        assert mine.finish_reason == theirs.finish_reason
        assert (mine.logprobs is None) == (kind == "transformers")


def test_what_vllm_would_take_from_elsewhere_is_said(model, tokenizer, asked, ends):
    """A generation_config.json beside the model decides nothing."""
    with OpenAIServer(model, tokenizer) as server:
        answers(backend(server, tokenizer), asked[:1], SAMPLED, ends)
    (body,) = server.bodies
    assert body == {
        "model": "tiny",
        "prompt": asked[0].prompt_ids,
        "max_tokens": 12,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": asked[0].seed,
        "logprobs": 0,
        "stop_token_ids": ends,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def test_an_item_has_its_own_temperature(model, tokenizer, asked, ends):
    with OpenAIServer(model, tokenizer) as server:
        mixed = [item._replace(temperature=0.25 * (1 + at % 2)) for at, item in enumerate(asked[:4])]
        answers(backend(server, tokenizer, concurrency=1), mixed, SamplingParams(max_new_tokens=2), ends)
    assert [body["temperature"] for body in server.bodies] == [0.25, 0.5, 0.25, 0.5]


def test_a_proxy_is_not_asked_for_a_server_on_this_machine(model, tokenizer, asked, ends, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with OpenAIServer(model, tokenizer) as server:
        answers(backend(server, tokenizer, retries=0), asked[:2], GREEDY, ends)


def test_what_is_done_is_not_asked(model, tokenizer, asked, ends):
    with OpenAIServer(model, tokenizer) as server:
        made = backend(server, tokenizer)
        found = dict(made.generate(asked[:6], GREEDY, end_ids=ends, done={1, 4}))
        made.close()
    assert sorted(found) == [0, 2, 3, 5]
    assert len(server.bodies) == 4


BUSY = (429, {"retry-after": "0.3"}, {"error": {"message": "too many"}})
TROUBLES = {
    "429": BUSY,
    "429 without a time": (429, {}, {"error": {"message": "too many"}}),
    "500": (500, {}, {"error": {"message": "oops"}}),
    "503 of a proxy": (503, {"content-type": "text/html"}, "<html>down</html>"),
    "closes": "close",
    "half an answer": "cut",
    "no JSON": (200, {}, "not json {"),
    "a page": (200, {"content-type": "text/html"}, "<html>hello</html>"),
    "nothing": (200, {}, {}),
    "no choice": (200, {}, {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": []}),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_row_arrives_once_whatever_the_server_does_now_and_then(model, tokenizer, asked, ends, trouble, expected):
    with OpenAIServer(
        model, tokenizer, trouble=lambda number, body: TROUBLES[trouble] if number % 5 == 2 else None
    ) as it:
        ours = answers(backend(it, tokenizer), asked, GREEDY, ends)
        assert len(it.bodies) > len(asked)
    assert [each.token_ids for each in ours] == [each.token_ids for each in expected(GREEDY)]


def test_a_server_that_hangs_is_asked_again(model, tokenizer, asked, ends, expected):
    with OpenAIServer(model, tokenizer, trouble=lambda number, body: "hang" if number == 3 else None) as server:
        began = time.monotonic()
        ours = answers(backend(server, tokenizer, timeout=1.5), asked, GREEDY, ends)
        assert time.monotonic() - began < 15
    assert [each.token_ids for each in ours] == [each.token_ids for each in expected(GREEDY)]


def test_a_server_that_asks_for_time_gets_it(model, tokenizer, asked, ends):
    busy = (429, {"retry-after": "1"}, {"error": {"message": "too many"}})
    with OpenAIServer(model, tokenizer, trouble=lambda number, body: busy if number == 0 else None) as server:
        answers(backend(server, tokenizer, concurrency=1), asked[:3], GREEDY, ends)
    assert server.times[1] - server.times[0] >= 1


def test_rows_that_never_come_are_named_and_the_others_kept(model, tokenizer, asked, ends):
    def trouble(number: int, body: dict[str, Any]) -> Any:
        return TROUBLES["500"] if body["prompt"] == asked[2].prompt_ids else None

    found = []
    named = [each._replace(name="the third") if at == 2 else each for at, each in enumerate(asked)]
    with OpenAIServer(model, tokenizer, trouble=trouble) as server:
        made = backend(server, tokenizer, retries=1, concurrency=1)
        with pytest.raises(StepError, match=r"left 1 unanswered \(21 more were not asked then\). the third: HTTP 500"):
            found.extend(at for at, _ in made.generate(named, GREEDY, end_ids=ends))
        made.close()
    assert [body["prompt"] for body in server.bodies].count(asked[2].prompt_ids) == 2
    assert found == [0, 1]


@pytest.mark.parametrize(
    "status, text, said",
    [
        (400, "too long", "HTTP 400: too long"),
        (401, "who are you", "HTTP 401: who are you .*api_key"),
        (404, "no such model", "HTTP 404: no such model"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(model, tokenizer, asked, ends, status, text, said):
    refused = (status, {}, {"error": {"message": text}})
    with OpenAIServer(model, tokenizer, trouble=lambda number, body: refused) as server:
        with pytest.raises(StepError, match=said):
            answers(backend(server, tokenizer, concurrency=1), asked, GREEDY, ends)
        assert len(server.bodies) == 1


def test_nobody_there(model, tokenizer, asked, ends):
    with OpenAIServer(model, tokenizer) as server:
        made = backend(server, tokenizer, retries=1)
    with pytest.raises(StepError, match=rf"no connection to {server.url}.*2 attempts"):
        answers(made, asked, GREEDY, ends)


def test_a_server_that_is_started_again_elsewhere(model, tokenizer, asked, ends, expected):
    """The address is asked for again after a lost connection, and waited for."""
    with OpenAIServer(model, tokenizer, trouble=lambda number, body: "close" if number >= 5 else None) as first:
        with OpenAIServer(model, tokenizer) as second:
            looks = 0

            def where() -> Address | None:
                nonlocal looks
                looks += 1
                if looks <= 3:
                    return None
                return Address(first.url if len(first.bodies) <= 5 else second.url, "tiny")

            endpoint = Endpoint(where, concurrency=1, timeout=20, retries=4)
            ours = answers(OpenAIBackend(endpoint, tokenizer, server="vllm"), asked, GREEDY, ends)
            assert len(second.bodies) == len(asked) - 5
    assert [each.token_ids for each in ours] == [each.token_ids for each in expected(GREEDY)]


def test_a_server_that_will_never_be_there(tokenizer, asked, ends):
    def where() -> Address | None:
        raise StepError("the server could not be started: no such file")

    made = OpenAIBackend(Endpoint(where, concurrency=4, timeout=1, retries=4), tokenizer)
    with pytest.raises(StepError, match="could not be started"):
        answers(made, asked, GREEDY, ends)


def test_another_tokenizer_is_noticed(model, tokenizer, asked, ends):
    """A server that puts a BOS before the prompt, say."""
    longer = [item._replace(prompt_ids=item.prompt_ids) for item in asked]
    with OpenAIServer(model, tokenizer) as server:
        server.answer = lambda body, chat: OpenAIServer.answer(server, {**body, "prompt": [1, *body["prompt"]]}, chat)
        with pytest.raises(StepError, match=r"the server read \d+ tokens where the prompt has \d+"):
            answers(backend(server, tokenizer), longer, GREEDY, ends)


@pytest.mark.parametrize("kind", ["vllm", "openai"])
def test_a_server_that_cuts_responses_off_is_noticed(model, tokenizer, asked, ends, kind):
    """vLLM does where its own context (--max-model-len) is full: status 200, finish_reason "length"."""
    with OpenAIServer(model, tokenizer, kind=kind) as server:
        server.answer = lambda body, chat: OpenAIServer.answer(server, {**body, "max_tokens": 5}, chat)
        with pytest.raises(StepError, match="'length' after 5 tokens, where max_new_tokens is 12"):
            answers(backend(server, tokenizer), asked, SAMPLED, ends)


def test_a_server_that_goes_on_for_too_long_is_noticed(model, tokenizer, asked, ends):
    with OpenAIServer(model, tokenizer) as server:
        server.answer = lambda body, chat: OpenAIServer.answer(server, {**body, "max_tokens": 20}, chat)
        with pytest.raises(StepError, match="tokens, where max_new_tokens is 12"):
            answers(backend(server, tokenizer), asked, GREEDY, ends)


def test_a_server_that_heeds_no_end_tokens_is_noticed(model, tokenizer, asked, ends):
    """Others than vLLM's ignore fields that they do not know."""

    def answer(body: dict[str, Any], chat: bool) -> dict[str, Any]:
        made = OpenAIServer.answer(server, body, chat)
        (choice,) = made["choices"]
        missing = body["max_tokens"] - len(choice["token_ids"])
        choice["token_ids"] += [7] * missing
        choice["logprobs"]["token_logprobs"] += [-1.0] * missing
        return made

    with OpenAIServer(model, tokenizer) as server:
        server.answer = answer
        with pytest.raises(StepError, match="went on after an end token"):
            answers(backend(server, tokenizer), asked, SamplingParams(max_new_tokens=64), ends)


@pytest.mark.parametrize(
    "said, read", [("cat \ud83d", "cat \ufffd"), ("\ude00 cat", "\ufffd cat"), ("\ud83d\ude00 ž\u2028", "😀 ž\u2028")]
)
def test_half_a_character(model, tokenizer, asked, ends, said, read):
    def answer(body: dict[str, Any], chat: bool) -> dict[str, Any]:
        made = OpenAIServer.answer(server, body, chat)
        made["choices"][0]["text"] = said
        return made

    with OpenAIServer(model, tokenizer, kind="openai") as server:
        server.answer = answer
        ours = answers(backend(server, tokenizer), asked[:1], GREEDY, ends)
    assert ours[0].text == read


def test_a_server_that_counts_no_tokens(model, tokenizer, asked, ends, expected):
    with OpenAIServer(model, tokenizer) as server:
        server.answer = lambda body, chat: OpenAIServer.answer(server, body, chat) | {"usage": {}}
        ours = answers(backend(server, tokenizer), asked, GREEDY, ends)
    assert [each[:2] for each in ours] == [each[:2] for each in expected(GREEDY)]


def test_a_template_of_the_servers_own_is_told_once(model, tokenizer, asked, ends):
    notes: list[str] = []
    with OpenAIServer(model, tokenizer, kind="openai") as server:
        made = backend(server, tokenizer, route="chat", note=notes.append)
        answers(made, [item._replace(prompt_ids=item.prompt_ids[:-1]) for item in asked], GREEDY, ends)
    assert len(notes) == 1
    assert "chat template" in notes[0]


def test_top_k_is_refused_where_nobody_would_heed_it(model, tokenizer, asked, ends):
    with OpenAIServer(model, tokenizer, kind="openai") as server:
        with pytest.raises(StepError, match="top_k"):
            answers(backend(server, tokenizer), asked, SamplingParams(top_k=5, max_new_tokens=2), ends)
    assert not server.bodies


def test_a_consumer_that_leaves_early_leaves_no_call_behind(model, tokenizer, asked, ends):
    with OpenAIServer(model, tokenizer, trouble=lambda number, body: "hang" if number > 2 else None) as server:
        made = backend(server, tokenizer)
        began = time.monotonic()
        for _ in made.generate(asked, GREEDY, end_ids=ends):
            break
        made.close()
        assert time.monotonic() - began < 5
