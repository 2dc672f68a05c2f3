"""A judge behind an API: every kind of trouble, limits, budget, several endpoints. Real sockets, a scripted judge."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from cdpo.errors import StepError
from cdpo.judge.answers import Answer, Question, Refusal
from cdpo.judge.api import ApiJudge
from cdpo.judge.ledger import Ledger
from cdpo.judge.reckoning import reckoned_tokens
from tests.judge.asked import service
from tests.judge.judge_server import JudgeServer, always_a

SAMPLING = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 50}


def questions(count, long=""):
    return [Question([{"role": "user", "content": f"question {at} {long}"}], f"pair {at}") for at in range(count)]


def judge(tmp_path, given, **more):
    budget = given["budget"]
    return ApiJudge("scripted", given, SAMPLING, ledger=Ledger(tmp_path / "ledger.jsonl", budget), **more)


def answers(asked, found):
    got = dict(asked.ask(found))
    asked.close()
    return got


def collect(asked, found, into):
    """Put every answer into `into` as it comes."""
    try:
        for at, answer in asked.ask(found):
            into[at] = answer
    finally:
        asked.close()


def contents(server):
    return sorted(body["messages"][-1]["content"] for body in server.bodies)


def test_every_question_is_asked_once_and_answered_in_its_place(tmp_path):
    with JudgeServer(lambda a, b, asked: f"said to {asked}") as server:
        asked = questions(100)
        got = answers(judge(tmp_path, service(server.url)), asked)
    assert [got[at].text for at in range(100)] == [f"said to {each.messages[0]['content']}" for each in asked]
    assert contents(server) == sorted(each.messages[0]["content"] for each in asked)
    assert all(body["temperature"] == 0 and body["max_tokens"] == 50 for body in server.bodies)
    assert got[0].model == "scripted-1"
    tokens = got[0].prompt_tokens + 10 * got[0].completion_tokens
    assert got[0].dollars == pytest.approx(tokens / 1e6)
    keys = [headers["idempotency-key"] for path, headers in server.asked if path.endswith("completions")]
    assert len(set(keys)) == 100


def test_an_answer_without_text_was_paid_for_and_is_not_asked_for_again(tmp_path):
    thought = {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    thought["usage"] = {"prompt_tokens": 10, "completion_tokens": 50}
    with JudgeServer(trouble=lambda number, body: (200, {}, thought)) as server:
        got = answers(judge(tmp_path, service(server.url)), questions(3))
        assert len(server.bodies) == 3
    assert [(each.text, each.finish_reason) for each in got.values()] == [("", "length")] * 3
    assert got[0].dollars == pytest.approx((10 + 500) / 1e6)


def trouble_once(*kinds):
    """Each of the first requests meets one of `kinds`; all later ones are answered."""
    return lambda number, body: kinds[number] if number < len(kinds) else None


def test_what_may_pass_is_asked_again(tmp_path):
    kinds = [
        "close",
        "cut",
        (500, {}, {"error": {"message": "out of order"}}),
        (429, {"retry-after": "0.3"}, {"error": {"message": "slow down"}}),
        (503, {}, "no JSON"),
        (200, {}, "no JSON"),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{"message": None}]}),
    ]
    with JudgeServer(always_a, trouble=trouble_once(*kinds)) as server:
        got = answers(judge(tmp_path, service(server.url, concurrency=8)), questions(20))
    assert {each.text for each in got.values()} == {"The first. [[A]]"}
    assert len(got) == 20
    assert len(server.bodies) == 20 + len(kinds)
    assert len(Path(tmp_path / "ledger.jsonl").read_text().splitlines()) == 20


def test_retry_after_is_heeded_by_all_requests(tmp_path):
    def busy(number, body):
        return (429, {"retry-after": "1"}, {"error": {"message": "busy"}}) if number == 4 else None

    with JudgeServer(always_a, trouble=busy, seconds=0.02) as server:
        answers(judge(tmp_path, service(server.url, concurrency=2)), questions(30))
    after = [each - server.times[4] for each in server.times[5:]]
    # the one that was under way beside it may have come just behind it
    assert min(after[1:]) >= 0.95
    assert len(server.bodies) == 31


@pytest.mark.fault(20)
def test_a_server_that_fails_for_ever_is_given_up_and_what_was_answered_is_kept(tmp_path):
    def broken(number, body):
        return (500, {}, {"error": {"message": "broken"}}) if "question 3 " in str(body["messages"]) else None

    got = {}
    with JudgeServer(always_a, trouble=broken) as server:
        asked = judge(tmp_path, service(server.url, retries=2))
        with pytest.raises(StepError, match=r"left 1 of 10 unanswered. pair 3: HTTP 500: broken, after 3 attempts"):
            collect(asked, questions(10), got)
    assert sum("question 3 " in str(body["messages"]) for body in server.bodies) == 3
    assert sorted(got) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_a_question_that_is_refused_is_told_apart(tmp_path):
    def filtered(number, body):
        refused = {"error": {"message": "content management policy", "code": "content_filter"}}
        return (400, {}, refused) if "question 3 " in str(body["messages"]) else None

    with JudgeServer(always_a, trouble=filtered) as server:
        got = answers(judge(tmp_path, service(server.url)), questions(10))
    assert isinstance(got[3], Refusal)
    assert "content management policy" in got[3].why
    assert sum(isinstance(each, Answer) for each in got.values()) == 9
    assert len(server.bodies) == 10


@pytest.mark.parametrize(
    "status, body, why",
    [
        (401, {"error": {"message": "wrong key"}}, "cannot be asked: HTTP 401: wrong key"),
        (404, {"error": {"message": "no such model"}}, "cannot be asked: HTTP 404: no such model"),
        (429, {"error": {"message": "no money", "code": "insufficient_quota"}}, "cannot be asked: HTTP 429: no money"),
    ],
    ids=["key", "model", "account"],
)
def test_what_cannot_pass_ends_it_at_once(tmp_path, status, body, why):
    with JudgeServer(always_a, trouble=lambda number, _: (status, {}, body)) as server:
        with pytest.raises(StepError, match=why):
            answers(judge(tmp_path, service(server.url, concurrency=4)), questions(50))
        assert len(server.bodies) <= 4


def test_a_judge_that_refuses_everything_is_not_asked_everything(tmp_path):
    refused = (400, {}, {"error": {"message": "temperature is not supported"}})
    with JudgeServer(always_a, trouble=lambda number, body: refused) as server:
        with pytest.raises(StepError, match="refuses every question: HTTP 400: temperature is not supported"):
            answers(judge(tmp_path, service(server.url, concurrency=4)), questions(200))
        assert len(server.bodies) < 30


def test_no_server_and_a_silent_one(tmp_path):
    with JudgeServer() as server:
        url = server.url
    said = []
    began = time.monotonic()
    with pytest.raises(StepError, match=r"the judge scripted does not answer: no connection to .*, after 3 attempts"):
        answers(judge(tmp_path, service(url, retries=2, concurrency=8), note=said.append), questions(500))
    # not after every question has failed by itself
    assert time.monotonic() - began < 15
    assert len(said) == 1
    assert "fails, and is tried again" in said[0]
    with JudgeServer(trouble=lambda number, body: "hang") as server:
        with pytest.raises(StepError, match="no answer in time, after 2 attempts"):
            answers(judge(tmp_path, service(server.url, retries=1, timeout_seconds=0.3)), questions(2))
        server.end.set()


def test_an_endpoint_that_is_down_leaves_its_questions_to_the_other(tmp_path):
    with JudgeServer() as gone:
        down = gone.url
    said = []
    with (
        JudgeServer(always_a) as server,
        JudgeServer(trouble=lambda n, b: (401, {}, {"error": {"message": "no"}})) as shut,
    ):
        got = answers(judge(tmp_path, service(down, shut.url, server.url), note=said.append), questions(200))
    assert len(got) == 200
    assert len(server.bodies) == 200
    (out,) = (each for each in said if "is not asked any more" in each)
    assert shut.url in out


def test_two_endpoints_share_the_work(tmp_path):
    with JudgeServer(always_a, seconds=0.05) as one, JudgeServer(always_a, seconds=0.05) as other:
        answers(judge(tmp_path, service(one.url, other.url, concurrency=4)), questions(80))
    assert len(one.bodies) + len(other.bodies) == 80
    assert min(len(one.bodies), len(other.bodies)) >= 20


def test_a_slow_endpoint_does_not_hold_questions_that_the_other_could_answer(tmp_path):
    with JudgeServer(always_a) as slow, JudgeServer(always_a) as fast:
        given = service(slow.url, fast.url)
        given["endpoints"][0]["requests_per_minute"] = 60
        began = time.monotonic()
        answers(judge(tmp_path, given), questions(100))
    # one question at most waits for a second with the slow one, which alone would take 100
    assert time.monotonic() - began < 15
    assert len(slow.bodies) <= 16


def windows(times, seconds):
    """The most events in any window of so many seconds."""
    return max(sum(start <= each < start + seconds for each in times) for start in times)


def requests_under_a_limit(tmp_path):
    """1,200 a minute are 20 a second: (when requests came, seconds that 200 took, that they should take)."""
    with JudgeServer(always_a, seconds=0.1) as server:
        began = time.monotonic()
        answers(judge(tmp_path, service(server.url, requests_per_minute=1200, concurrency=64)), questions(200))
        # a second's worth may go at once; after that, 20 a second
        return server.times, time.monotonic() - began, (200 - 20) / 20


def tokens_under_a_limit(tmp_path):
    """25 requests a second, by what the server counted and not by what might have been: (seconds that 150 took, that
    they should take)."""
    with JudgeServer(always_a, seconds=0.02) as server:
        asked = questions(150, long="x" * 400)
        used = len(asked[0].messages[0]["content"]) // 4 + 20
        began = time.monotonic()
        answers(judge(tmp_path, service(server.url, tokens_per_minute=60 * used * 25, concurrency=16)), asked)
        return time.monotonic() - began, (150 - 25) / 25


def test_limits_are_never_exceeded_under_load(tmp_path):
    times, took, expected = requests_under_a_limit(tmp_path)
    assert took >= expected * 0.95
    assert windows(times, 5.0) <= (5 + 1) * 20 * 1.05
    took, expected = tokens_under_a_limit(tmp_path)
    assert took >= expected * 0.95


@pytest.mark.slow
def test_limits_are_used_to_the_full(tmp_path):
    """On a machine that does nothing else: within 5 %, and what it takes to begin."""
    _, took, expected = requests_under_a_limit(tmp_path)
    assert took <= expected * 1.05 + 0.5
    took, expected = tokens_under_a_limit(tmp_path)
    assert took <= expected * 1.05 + 0.5


def test_a_question_beyond_the_limit_is_told(tmp_path):
    with JudgeServer() as server:
        with pytest.raises(StepError, match=r"it may take .* tokens, and .* allows 60 a minute"):
            answers(judge(tmp_path, service(server.url, tokens_per_minute=60)), questions(2))
        assert not server.bodies


def test_the_budget_is_never_exceeded_and_lasts(tmp_path):
    budget = 0.005
    with JudgeServer(always_a, seconds=0.01) as server:
        given = service(server.url, budget=budget)
        got, asked = {}, judge(tmp_path, given)
        with pytest.raises(StepError, match=r"the budget of the judge scripted does not allow more: \$0.00"):
            collect(asked, questions(100), got)
        spent = sum(each.dollars for each in got.values())
        assert 0.8 * budget < spent <= budget
        assert len(server.bodies) == len(got)
        # another step, tomorrow
        again = judge(tmp_path, given)
        assert again.ledger.spent == pytest.approx(spent)
        with pytest.raises(StepError, match="budget"):
            answers(again, questions(100))
        assert len(server.bodies) <= len(got) + 1


def test_azure_is_asked_as_azure_wants_it(tmp_path, monkeypatch):
    monkeypatch.setenv("AZURE_KEY", "sesame")
    with JudgeServer(always_a) as server:
        root = server.url.removesuffix("/v1")
        options = {"api": "azure", "api_version": "2024-10-21", "model": "my-deployment", "api_key": "AZURE_KEY"}
        got = answers(judge(tmp_path, service(root, **options)), questions(3))
        path, headers = server.asked[0]
    assert len(got) == 3
    assert path == "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21"
    assert headers["api-key"] == "sesame"


def test_models_that_know_another_name_of_the_limit(tmp_path):
    def newer(number, body):
        said = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
        return (400, {}, {"error": {"message": said}}) if "max_tokens" in body else None

    with JudgeServer(always_a, trouble=newer) as server:
        got = answers(judge(tmp_path, service(server.url, concurrency=2)), questions(20))
    assert all(isinstance(each, Answer) for each in got.values())
    assert len(server.bodies) <= 22
    assert server.bodies[-1]["max_completion_tokens"] == 50
    assert "top_p" not in server.bodies[-1]


def test_log_probabilities_of_the_first_token(tmp_path):
    with JudgeServer(always_a) as server:
        got = answers(judge(tmp_path, service(server.url), top_logprobs=5), questions(1))
        assert server.bodies[0]["top_logprobs"] == 5
    assert got[0].first_token == {"m": -0.2, "M": -1.8, "x": -5.0}


def test_who_is_to_be_left_alone_for_hours_holds_nothing_back(tmp_path):
    """Neither the questions that another endpoint can answer, nor, alone, the end of a step that is told to stop."""
    away = {"retry-after": "36000"}
    for status in (429, 503):
        with (
            JudgeServer(always_a, trouble=lambda n, b, s=status: (s, away, {"error": {"message": "away"}})) as gone,
            JudgeServer(always_a, seconds=0.02) as server,
        ):
            began = time.monotonic()
            got = answers(judge(tmp_path, service(gone.url, server.url, concurrency=2)), questions(30))
            assert time.monotonic() - began < 10
        assert len(got) == 30
        assert len(gone.bodies) <= 2
        assert len(server.bodies) == 30


def test_endpoints_that_are_busy_without_saying_how_long_are_left_alone_for_a_while(tmp_path):
    """Two that refuse for a second do not use up the attempts of a question in no time."""
    began = time.monotonic()

    def busy(number, body):
        return (429, {}, {"error": {"message": "busy"}}) if time.monotonic() - began < 1 else None

    with JudgeServer(always_a, trouble=busy) as one, JudgeServer(always_a, trouble=busy) as other:
        got = answers(judge(tmp_path, service(one.url, other.url, concurrency=1)), questions(2))
        assert len(one.bodies) + len(other.bodies) < 12
    assert len(got) == 2


def test_a_question_too_long_for_one_endpoint_goes_to_another(tmp_path):
    with JudgeServer(always_a) as small, JudgeServer(always_a) as large:
        given = service(small.url, large.url)
        given["endpoints"][0]["tokens_per_minute"] = 6000
        asked = questions(5, long="x" * 30000) + questions(10)
        got = answers(judge(tmp_path, given), asked)
    assert len(got) == 15
    assert all(len(body["messages"][0]["content"]) < 30000 for body in small.bodies)


def counting(**usage):
    """A server that says so of its tokens."""

    class Counting(JudgeServer):
        def answer(self, body, chat):
            return super().answer(body, chat) | {"usage": usage or None}

    return Counting(always_a)


def test_a_server_that_does_not_count_is_not_free(tmp_path):
    with counting() as server:
        got = {}
        with pytest.raises(StepError, match="the budget of the judge scripted does not allow more"):
            collect(judge(tmp_path, service(server.url, budget=0.005)), questions(100), got)
    assert 0 < len(got) < 100
    assert all(each.completion_tokens > 0 for each in got.values())


def test_numbers_that_are_none_are_answers_that_are_none(tmp_path):
    with counting(prompt_tokens=float("inf"), completion_tokens=1) as server:
        with pytest.raises(StepError, match="an answer that is none"):
            answers(judge(tmp_path, service(server.url, retries=0)), questions(1))
    with counting(prompt_tokens="12", completion_tokens="3") as server:
        assert answers(judge(tmp_path, service(server.url)), questions(1))[0].prompt_tokens == 12


def test_log_probabilities_that_are_no_numbers(tmp_path):
    class Strange(JudgeServer):
        def answer(self, body, chat):
            said = super().answer(body, chat)
            said["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = float("nan")
            return said

    with Strange(always_a) as server:
        with pytest.raises(StepError, match="log-probabilities that are none"):
            answers(judge(tmp_path, service(server.url, retries=0), top_logprobs=5), questions(1))


def test_a_server_that_sends_blanks_for_ever_does_not_answer_in_time(tmp_path):
    """As gateways do while a request waits; the connection is never silent."""

    def blanks(listener):
        connection, _ = listener.accept()
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n")
            for _ in range(100):
                connection.sendall(b"\n")
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=blanks, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        began = time.monotonic()
        with pytest.raises(StepError, match="no answer in time"):
            answers(judge(tmp_path, service(url, retries=0, timeout_seconds=0.5)), questions(1))
        assert time.monotonic() - began < 5


def test_tokens_are_reckoned_by_bytes():
    """So that a budget holds for languages whose characters are tokens."""
    assert reckoned_tokens(Question([{"role": "user", "content": "河" * 300}], "")) >= 300


def test_how_an_endpoint_samples_and_what_it_tells_are_part_of_a_judge(tmp_path):
    given = service("http://127.0.0.1:9/v1")
    plain, telling = judge(tmp_path, given), judge(tmp_path, given, top_logprobs=5)
    assert plain.identity != telling.identity
    assert plain.identity == {"api": "scripted", **SAMPLING}
    for each in (plain, telling):
        each.close()


def test_a_server_that_is_busy_with_the_others_does_not_use_up_attempts(tmp_path):
    refused = []

    def busy(number, body):
        if "question 0 " not in str(body["messages"]) or len(refused) == 3:
            return None
        refused.append(number)
        return 429, {}, {"error": {"message": "busy"}}

    with JudgeServer(always_a, trouble=busy, seconds=0.05) as server:
        got = answers(judge(tmp_path, service(server.url, retries=1, concurrency=2)), questions(150))
    assert len(refused) == 3
    assert len(got) == 150
