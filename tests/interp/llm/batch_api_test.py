"""The provider's batch API: files, polling, what is lost and asked again, and a kill at any moment."""

import pytest

from interp.llm import batch_api
from interp.llm.answer_cache import AnswerCache
from maira_jax.errors import UserError
from tests.helpers.judge import detect, detect_questions, make_client, serve


@pytest.fixture
def small(monkeypatch):
    """Files of ten requests, looked at often."""
    monkeypatch.setattr(batch_api, "_MAX_REQUESTS", 10)
    monkeypatch.setattr(batch_api, "_MIN_POLL_S", 0.01)


def test_batches_give_the_answers_of_single_requests(tmp_path, small):
    with serve(batch_lost=0.2) as server:
        client = make_client(server.url, tmp_path / "a", mode="batch", price_in=1.0, price_out=2.0)
        asked = [*detect_questions(25), *detect_questions(5)]
        verdicts = detect(client, asked)
        assert [verdict.answers for verdict in verdicts] == [(1, 0)] * 30
        record = server.record()
        # Five tasks are asked twice; three files, and more for what was lost; nothing is asked one by one.
        assert record["distinct"] == 25 and record["answered_twice"] > 0
        assert record["outcomes"]["batch"] > 3
        assert all(verdict.cost > 0 for verdict in verdicts)
        n = record["outcomes"]["batch"]
        client.close()
        again = make_client(server.url, tmp_path / "a", mode="batch", price_in=1.0, price_out=2.0)
        assert [verdict.cost for verdict in detect(again, asked)] == [verdict.cost for verdict in verdicts]
        assert server.record()["outcomes"]["batch"] == n
        assert not (tmp_path / "a" / "judge" / "batches").exists()


@pytest.mark.parametrize("moment", ["noted", "given"])
def test_a_killed_run_waits_for_the_batches_that_it_gave_away(tmp_path, small, monkeypatch, moment):
    """Killed while it waits, or between giving a file away and noting that."""
    with serve(batch_polls=-1) as server:
        client = make_client(server.url, tmp_path, mode="batch")

        async def killed(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            if moment == "noted":
                patched.setattr(batch_api._BatchRun, "_collect", killed)
            else:
                patched.setattr(AnswerCache, "record_batch", lambda *a, **k: 1 / 0)
            with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
                detect(client, detect_questions(25))
        client.close()
        given = server.record()["outcomes"]["batch"]
        assert given == (3 if moment == "noted" else 1)
        server.control(batch_polls=0)
        assert all(detect(make_client(server.url, tmp_path, mode="batch"), detect_questions(25)))
        assert server.record()["outcomes"]["batch"] == 3 and server.record()["answered_twice"] == 0


def test_refusals_and_wrong_answers_are_counted_separately(tmp_path, small):
    with serve(wrong_text="odd", fault_text="bad", fault_status=400, batch_polls=0) as server:
        client = make_client(server.url, tmp_path, mode="batch", attempts=2)
        verdicts = detect(client, [*detect_questions(3), *detect_questions(2, "odd"), *detect_questions(1, "bad")])
        assert [verdict is None for verdict in verdicts] == [False] * 3 + [True] * 3
        assert client.usage()["failed"] == {
            "its answers did not have the form that was asked for": 2,
            "the server refused it (HTTP 400)": 1,
        }


def test_servers_without_json_schemas_are_asked_without(tmp_path, small):
    with serve(schema=False, batch_polls=0) as server:
        assert all(detect(make_client(server.url, tmp_path, mode="batch"), detect_questions(3)))


def test_the_budget_holds_for_batches(tmp_path, small):
    prices = {"price_in": 1000.0, "price_out": 1000.0, "parameters": {"temperature": 0.0, "max_tokens": 20}}
    with serve(batch_polls=0) as server:
        client = make_client(server.url, tmp_path, mode="batch", max_cost=10.0, **prices)
        with pytest.raises(UserError, match="used up"):
            detect(client, detect_questions(100))
        spent, asked = client.usage()["cost"], server.record()["requests"]
        assert 8.0 < spent <= 10.0
        client.close()
        assert all(
            detect(make_client(server.url, tmp_path, mode="batch", max_cost=1e4, **prices), detect_questions(100))
        )
        assert server.record()["requests"] == 100 and asked < 100 and server.record()["answered_twice"] == 0
