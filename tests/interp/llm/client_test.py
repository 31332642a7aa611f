"""The client of language models: what is retried, what is counted, what stops the work, what is never paid twice."""

import json
import sqlite3
import time
import zlib

import openai._base_client
import pytest

from interp.llm.client import ChatClient
from maira_jax.errors import UserError
from tests.helpers.judge import (
    detect,
    detect_questions,
    explain,
    explain_task,
    interpreters,
    judge_config,
    make_client,
    serve,
    word,
)


@pytest.fixture
def quick(monkeypatch):
    """Waits after failures last no time."""
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.0)


def test_answers_of_another_form_are_asked_for_again_then_counted_apart(tmp_path, quick):
    with serve(wrong_text="odd") as server:
        client = make_client(server.url, tmp_path, attempts=3)
        asked = [*detect_questions(5), *detect_questions(2, "odd"), *detect_questions(9)[5:], *detect_questions(9)]
        verdicts = detect(client, asked)
        assert [verdict is None for verdict in verdicts] == [False] * 5 + [True] * 2 + [False] * 13
        assert all(verdict.answers == (1, 0) for verdict in verdicts if verdict)
        assert client.usage()["failed"] == {"its answers did not have the form that was asked for": 2}
        sent = server.record()
        assert sent["requests"] == 9 + 2 * 3
        # At temperature 0 the same question would have the same answer.
        odd = sorted(b["temperature"] for b in sent["bodies"] if "odd 0" in b["messages"][1]["content"])
        assert odd == [0.0, 0.7, 0.7]
        # Another process asks nothing again, not even those.
        client.close()
        again = make_client(server.url, tmp_path, attempts=3)
        assert [verdict is None for verdict in detect(again, asked)] == [verdict is None for verdict in verdicts]
        assert server.record()["requests"] == sent["requests"]


@pytest.mark.parametrize(("status", "tries"), [(400, 2), (413, 1), (500, 3), (429, 3)])
def test_a_request_that_always_fails_ends_nothing(tmp_path, quick, status, tries):
    with serve(fault_text="odd", fault_status=status) as server:
        client = make_client(server.url, tmp_path, attempts=3, concurrency=1)
        verdicts = detect(client, [*detect_questions(1, "odd"), *detect_questions(6)])
        assert [verdict is None for verdict in verdicts] == [True] + [False] * 6
        ((reason, count),) = client.usage()["failed"].items()
        assert f"HTTP {status}" in reason and count == 1
        assert server.record()["requests"] == 6 + tries


def test_when_everything_fails_the_work_stops_and_goes_on_later(tmp_path, quick):
    with serve() as server:
        client = make_client(server.url, tmp_path, attempts=2, concurrency=4)
        detect(client, detect_questions(3))
        server.control(failing=1.0)
        with pytest.raises(UserError, match=r"20 requests .* failed one after.*HTTP 500.*all answers are kept"):
            detect(client, detect_questions(100))
        client.close()
        server.control(failing=0.0)
        later = make_client(server.url, tmp_path, attempts=2)
        assert all(detect(later, detect_questions(100)))
        assert server.record()["answered_twice"] == 0


def test_many_questions_without_usable_answer_stop_the_run_and_no_later_one(tmp_path, quick, capsys):
    with serve(wrong_text="odd") as server:
        first = make_client(server.url, tmp_path, attempts=2, concurrency=1)
        with pytest.raises(UserError, match="20 requests .* failed one after the other, .* the form that was asked"):
            detect(first, detect_questions(30, "odd"))
        first.close()
        n = server.record()["requests"]
        assert 20 * 2 <= n <= 20 * 2 + 1
        for requests in (30 * 2 - n, 0):
            before = server.record()["requests"]
            client = make_client(server.url, tmp_path, attempts=2)
            assert detect(client, detect_questions(30, "odd")) == [None] * 30
            assert client.usage()["failed"] == {"its answers did not have the form that was asked for": 30}
            assert server.record()["requests"] - before == requests
            capsys.readouterr()
            client.close()
            assert capsys.readouterr().err == (
                "judge: 30 requests have no usable answer (30: its answers did not have the form that was asked for)\n"
            )


def test_a_server_that_disappears_is_one_sentence(tmp_path, quick):
    with serve(latency_s=0.01) as server:
        client = make_client(server.url, tmp_path, attempts=3)
        detect(client, detect_questions(2))
    with pytest.raises(UserError, match="no server can be reached"):
        detect(client, detect_questions(4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fault_text": "tube", "fault_status": 404}, "does not know its path or the model 'rule'"),
        ({"fault_text": "tube", "fault_status": 429, "fault_code": "insufficient_quota"}, "the quota is used up"),
        ({"key": "right"}, "refuses the key .* OPENAI_API_KEY"),
    ],
)
def test_what_no_other_try_can_fix_stops_at_once(tmp_path, settings, words):
    with serve(**settings) as server:
        with pytest.raises(UserError, match=words):
            detect(make_client(server.url, tmp_path, concurrency=1), detect_questions(3))
        assert server.record()["requests"] <= 1


def test_servers_without_json_schemas_are_asked_without(tmp_path):
    with serve(schema=False) as server:
        client = make_client(server.url, tmp_path, concurrency=1)
        assert all(detect(client, detect_questions(5))) and all(explain(client, [explain_task(0)]))
        record = server.record()
        assert record["outcomes"]["no schema"] == 1 and record["outcomes"]["answered"] == 6
        assert all("response_format" not in body for body in record["bodies"][1:])


def test_the_budget_is_never_passed_and_a_higher_one_goes_on(tmp_path):
    prices = {"price_in": 1000.0, "price_out": 1000.0, "parameters": {"temperature": 0.0, "max_tokens": 20}}
    with serve(latency_s=0.01) as server:
        client = make_client(server.url, tmp_path, max_cost=10.0, **prices)
        with pytest.raises(UserError, match=r"judge.max_cost of \$10.00 is used up .* run again with a higher"):
            detect(client, detect_questions(100))
        spent, done = client.usage()["cost"], server.record()["requests"]
        # What is left of it is less than what one more request may cost.
        assert 9.0 < spent <= 10.0 and 0 < done < 100
        with pytest.raises(UserError, match=r"max_cost of \$10.00"):
            detect(client, detect_questions(100))
        client.close()
        assert server.record()["requests"] == done
        more = make_client(server.url, tmp_path, max_cost=1000.0, **prices)
        verdicts = detect(more, detect_questions(100))
        record = server.record()
        assert all(verdicts) and record["requests"] == 100 and record["answered_twice"] == 0
        assert sum(verdict.cost for verdict in verdicts) == pytest.approx(more.usage()["cost"])


def test_prices_are_needed_for_a_budget(tmp_path):
    with pytest.raises(UserError, match="judge.max_cost needs prices"):
        make_client("http://127.0.0.1:1/v1", tmp_path, max_cost=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": ""}, "judge.model is empty"),
        ({"mode": "fast"}, "judge.mode is 'fast': choose from live or batch"),
        ({"concurrency": 0}, "judge.concurrency is 0, but must be at least 1"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        make_client("http://127.0.0.1:1/v1", tmp_path, **change)


def test_unknown_settings_are_refused(tmp_path):
    cfg = judge_config("http://127.0.0.1:1/v1")
    cfg.judge.modle = "x"
    with pytest.raises(UserError, match="judge.modle is unknown"):
        ChatClient.open(cfg, tmp_path)


def test_answers_come_as_they_are_asked_for(tmp_path):
    """Requests are read as there is room for them, and one that takes long keeps none of the others."""
    questions = detect_questions(200)
    read = 0

    def counted():
        nonlocal read
        for question in questions:
            read += 1
            yield question

    with serve(latency_s=0.005) as server:
        verdicts = interpreters(make_client(server.url, tmp_path, concurrency=4))[1].detect(counted())
        assert next(verdicts).answers == (1, 0)
        assert read <= 20
        assert sum(1 for _ in verdicts) == 199 and server.record()["requests"] == 200


def test_a_retry_after_is_waited_for(tmp_path):
    with serve(too_many=1.0, retry_after="1.5") as server:
        client = make_client(server.url, tmp_path, attempts=2)
        begin = time.monotonic()
        assert detect(client, detect_questions(1)) == [None]
        assert time.monotonic() - begin >= 1.5 and server.record()["requests"] == 2


def test_a_retry_after_beyond_what_the_library_waits_is_not_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.llm.connection._MAX_WAIT_S", 0.2)
    with serve(too_many=1.0, retry_after="150") as server:
        client = make_client(server.url, tmp_path, attempts=3)
        begin = time.monotonic()
        assert detect(client, detect_questions(1)) == [None]
        assert time.monotonic() - begin >= 0.4 and server.record()["requests"] == 3


def test_tries_that_are_repeated_keep_to_the_rate(tmp_path):
    """Twenty a minute are one in three seconds; the first of them may come a second early."""
    with serve(failing=1.0) as server:
        client = make_client(server.url, tmp_path, attempts=2, requests_per_minute=20.0)
        begin = time.monotonic()
        assert detect(client, detect_questions(1)) == [None]
        assert time.monotonic() - begin >= 1.9 and server.record()["requests"] == 2


def test_the_record_holds_what_was_asked(tmp_path):
    with serve() as server:
        client = make_client(server.url, tmp_path)
        explain(client, [explain_task(3)])
        client.close()
    with sqlite3.connect(tmp_path / "judge" / "answers.sqlite") as db:
        ((prompt, model, data, text),) = db.execute("SELECT prompt, model, request, answer FROM answers").fetchall()
    assert (prompt, model) == ("explain-1", "rule") and word(3) in text
    assert word(3) in json.loads(zlib.decompress(data))


def test_an_estimate_comes_before_the_work(tmp_path, capsys):
    client = make_client("http://127.0.0.1:1/v1", tmp_path, price_in=2.0, price_out=8.0)
    judge = interpreters(client)[1]
    question = detect_questions(1)[0]
    with client.counting() as count:
        assert list(judge.detect([question] * 20)) == [None] * 20
    client.announce(count, 500)
    tokens = judge.detect_request(question).tokens * 20 * 500
    told = capsys.readouterr().err
    assert "about 10,000 requests to rule" in told and f"{tokens / 1e6:.1f} million tokens in" in told
    assert f"${tokens * 2 / 1e6 + 10_000 * 70 * 8 / 1e6:,.2f} at the configured prices" in told
