"""The provider's batch API: files, polling, what is lost and asked again, and a kill at any moment."""

import pytest

from interp.llm import batch_api
from maira_jax.errors import UserError
from tests.helpers.judge import detect_tasks, make_judge, serve


@pytest.fixture
def small(monkeypatch):
    """Files of ten requests, looked at often."""
    monkeypatch.setattr(batch_api, "_MOST_REQUESTS", 10)
    monkeypatch.setattr(batch_api, "_SHORTEST_POLL_S", 0.01)


def test_batches_give_the_answers_of_single_requests(tmp_path, small):
    with serve(batch_lost=0.2) as server:
        judge = make_judge(server.url, tmp_path / "a", mode="batch", price_in=1.0, price_out=2.0)
        asked = [*detect_tasks(25), *detect_tasks(5)]
        verdicts = judge.detect(asked)
        assert [verdict.answers for verdict in verdicts] == [(1, 0)] * 30
        record = server.record()
        # Five tasks are asked twice; three files, and more for what was lost; nothing is asked one by one.
        assert record["distinct"] == 25 and record["answered_twice"] > 0
        assert record["outcomes"]["batch"] > 3
        assert all(verdict.cost > 0 for verdict in verdicts)
        n = record["outcomes"]["batch"]
        judge.close()
        again = make_judge(server.url, tmp_path / "a", mode="batch", price_in=1.0, price_out=2.0)
        assert [verdict.cost for verdict in again.detect(asked)] == [verdict.cost for verdict in verdicts]
        assert server.record()["outcomes"]["batch"] == n
        assert not list((tmp_path / "a" / "judge" / "batches").iterdir())


@pytest.mark.parametrize("moment", ["noted", "given"])
def test_a_killed_run_waits_for_the_batches_that_it_gave_away(tmp_path, small, monkeypatch, moment):
    """Killed while it waits, or between giving a file away and noting that."""
    with serve(batch_polls=-1) as server:
        judge = make_judge(server.url, tmp_path, mode="batch")

        async def killed(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            if moment == "noted":
                patched.setattr(batch_api, "_collect", killed)
            else:
                patched.setattr(type(judge._client.cache), "keep_batch", lambda *a, **k: 1 / 0)
            with pytest.raises((KeyboardInterrupt, ZeroDivisionError)):
                judge.detect(detect_tasks(25))
        judge.close()
        given = server.record()["outcomes"]["batch"]
        assert given == (3 if moment == "noted" else 1)
        server.control(batch_polls=0)
        assert all(make_judge(server.url, tmp_path, mode="batch").detect(detect_tasks(25)))
        assert server.record()["outcomes"]["batch"] == 3 and server.record()["answered_twice"] == 0


def test_refusals_and_wrong_answers_are_counted_apart(tmp_path, small):
    with serve(wrong_text="odd", fault_text="bad", fault_status=400, batch_polls=0) as server:
        judge = make_judge(server.url, tmp_path, mode="batch", attempts=2)
        verdicts = judge.detect([*detect_tasks(3), *detect_tasks(2, "odd"), *detect_tasks(1, "bad")])
        assert [verdict is None for verdict in verdicts] == [False] * 3 + [True] * 3
        assert judge.usage()["failed"] == {
            "its answers did not have the form that was asked for": 2,
            "the server refused it (HTTP 400)": 1,
        }


def test_servers_without_json_schemas_are_asked_without(tmp_path, small):
    with serve(schema=False, batch_polls=0) as server:
        assert all(make_judge(server.url, tmp_path, mode="batch").detect(detect_tasks(3)))


def test_the_budget_holds_for_batches(tmp_path, small):
    prices = {"price_in": 1000.0, "price_out": 1000.0, "parameters": {"temperature": 0.0, "max_tokens": 20}}
    with serve(batch_polls=0) as server:
        judge = make_judge(server.url, tmp_path, mode="batch", max_cost=10.0, **prices)
        with pytest.raises(UserError, match="used up"):
            judge.detect(detect_tasks(100))
        spent, asked = judge.usage()["cost"], server.record()["requests"]
        assert 8.0 < spent <= 10.0
        judge.close()
        assert all(make_judge(server.url, tmp_path, mode="batch", max_cost=1e4, **prices).detect(detect_tasks(100)))
        assert server.record()["requests"] == 100 and asked < 100 and server.record()["answered_twice"] == 0
