"""The client of language models: what is retried, what is counted, what stops the work, what is never paid twice."""

import asyncio
import datetime
import email.utils
import json
import shutil
import sqlite3
import subprocess
import sys
import zlib

import pytest

from interp.explainers import llm
from interp.llm import rate_limit
from interp.llm.answer_cache import Answer, Cache
from maira_jax.errors import UserError
from tests.helpers.judge import ROOT, detect_tasks, explain_task, judge_config, make_judge, serve, word


def answer(text="{}"):
    return Answer(text, 100, 10, 0.5)


STORED = {"prompt": "detect-1", "content": "data"}


@pytest.fixture
def quick(monkeypatch):
    """Waits after failures last no time; their lengths are tested by themselves."""
    monkeypatch.setattr("interp.llm.client.wait_s", lambda failures, headers: 0.0)


def test_answers_of_another_form_are_asked_for_again_then_counted_apart(tmp_path, quick):
    with serve(wrong_text="odd") as server:
        judge = make_judge(server.url, tmp_path, attempts=3)
        asked = [*detect_tasks(5), *detect_tasks(2, "odd"), *detect_tasks(9)[5:], *detect_tasks(9)]
        verdicts = judge.detect(asked)
        assert [verdict is None for verdict in verdicts] == [False] * 5 + [True] * 2 + [False] * 13
        assert all(verdict.answers == (1, 0) for verdict in verdicts if verdict)
        assert judge.usage()["failed"] == {"its answers did not have the form that was asked for": 2}
        sent = server.record()
        assert sent["requests"] == 9 + 2 * 3
        # At temperature 0 the same question would have the same answer.
        odd = sorted(b["temperature"] for b in sent["bodies"] if "odd 0" in b["messages"][1]["content"])
        assert odd == [0.0, 0.7, 0.7]
        # Another process asks nothing again, not even those.
        judge.close()
        again = make_judge(server.url, tmp_path, attempts=3)
        assert [verdict is None for verdict in again.detect(asked)] == [verdict is None for verdict in verdicts]
        assert server.record()["requests"] == sent["requests"]


@pytest.mark.parametrize(("status", "tries"), [(400, 2), (413, 1), (500, 3), (429, 3)])
def test_a_request_that_always_fails_ends_nothing(tmp_path, quick, status, tries):
    with serve(fault_text="odd", fault_status=status) as server:
        judge = make_judge(server.url, tmp_path, attempts=3, concurrency=1)
        verdicts = judge.detect([*detect_tasks(1, "odd"), *detect_tasks(6)])
        assert [verdict is None for verdict in verdicts] == [True] + [False] * 6
        ((reason, count),) = judge.usage()["failed"].items()
        assert f"HTTP {status}" in reason and count == 1
        assert server.record()["requests"] == 6 + tries


def test_when_everything_fails_the_work_stops_and_goes_on_later(tmp_path, quick):
    with serve() as server:
        judge = make_judge(server.url, tmp_path, attempts=2, concurrency=4)
        judge.detect(detect_tasks(3))
        server.control(failing=1.0)
        with pytest.raises(UserError, match=r"20 requests .* failed one after.*HTTP 500.*all answers are kept"):
            judge.detect(detect_tasks(100))
        judge.close()
        server.control(failing=0.0)
        later = make_judge(server.url, tmp_path, attempts=2)
        assert all(later.detect(detect_tasks(100)))
        assert server.record()["answered_twice"] == 0


def test_many_questions_without_usable_answer_stop_no_later_run(tmp_path, quick):
    with serve(wrong_text="odd") as server:
        for requests in (30 * 2, 0):
            before = server.record()["requests"]
            judge = make_judge(server.url, tmp_path, attempts=2)
            assert judge.detect(detect_tasks(30, "odd")) == [None] * 30
            assert judge.usage()["failed"] == {"its answers did not have the form that was asked for": 30}
            assert server.record()["requests"] - before == requests
            judge.close()


def test_a_server_that_disappears_is_one_sentence(tmp_path, quick):
    with serve(latency_s=0.01) as server:
        judge = make_judge(server.url, tmp_path, attempts=3)
        judge.detect(detect_tasks(2))
    with pytest.raises(UserError, match="no server can be reached"):
        judge.detect(detect_tasks(4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fault_text": "tube", "fault_status": 404}, "does not know its path or the model 'rule'"),
        ({"fault_text": "tube", "fault_status": 429, "fault_code": "insufficient_quota"}, "the quota is used up"),
        ({"key": "right"}, "refuses the key .* OPENAI_API_KEY"),
    ],
)
def test_what_no_other_try_can_mend_stops_at_once(tmp_path, settings, words):
    with serve(**settings) as server:
        with pytest.raises(UserError, match=words):
            make_judge(server.url, tmp_path, concurrency=1).detect(detect_tasks(3))
        assert server.record()["requests"] <= 1


def test_servers_without_json_schemas_are_asked_without(tmp_path):
    with serve(schema=False) as server:
        judge = make_judge(server.url, tmp_path, concurrency=1)
        assert all(judge.detect(detect_tasks(5))) and all(judge.explain([explain_task(0)]))
        record = server.record()
        assert record["outcomes"]["no schema"] == 1 and record["outcomes"]["answered"] == 6
        assert all("response_format" not in body for body in record["bodies"][1:])


def test_the_budget_is_never_passed_and_a_higher_one_goes_on(tmp_path):
    prices = {"price_in": 1000.0, "price_out": 1000.0, "parameters": {"temperature": 0.0, "max_tokens": 20}}
    with serve(latency_s=0.01) as server:
        judge = make_judge(server.url, tmp_path, max_cost=10.0, **prices)
        with pytest.raises(UserError, match=r"judge.max_cost of \$10.00 is used up .* run again with a higher"):
            judge.detect(detect_tasks(100))
        spent, done = judge.usage()["cost"], server.record()["requests"]
        # What is left of it is less than what one more request may cost.
        assert 9.0 < spent <= 10.0 and 0 < done < 100
        with pytest.raises(UserError, match=r"max_cost of \$10.00"):
            judge.detect(detect_tasks(100))
        judge.close()
        assert server.record()["requests"] == done
        more = make_judge(server.url, tmp_path, max_cost=1000.0, **prices)
        verdicts = more.detect(detect_tasks(100))
        record = server.record()
        assert all(verdicts) and record["requests"] == 100 and record["answered_twice"] == 0
        assert sum(verdict.cost for verdict in verdicts) == pytest.approx(more.usage()["cost"])


def test_prices_are_needed_for_a_budget(tmp_path):
    with pytest.raises(UserError, match="judge.max_cost needs prices"):
        make_judge("http://127.0.0.1:1/v1", tmp_path, max_cost=1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": ""}, "judge.model is empty"),
        ({"mode": "fast"}, "judge.mode 'fast' does not exist: choose live or batch"),
        ({"concurrency": 0}, "judge.concurrency is 0"),
        ({"timeout": 0.0}, "judge.timeout is 0.0"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        make_judge("http://127.0.0.1:1/v1", tmp_path, **change)


def test_unknown_settings_are_refused(tmp_path):
    cfg = judge_config("http://127.0.0.1:1/v1")
    cfg.judge.modle = "x"
    with pytest.raises(UserError, match="judge.modle is unknown"):
        llm.from_config(cfg, tmp_path)


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self, monkeypatch):
        self.now, self.waits = 100.0, []
        monkeypatch.setattr(rate_limit.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(rate_limit.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


def test_rates_are_kept_and_corrected(monkeypatch):
    clock = Clock(monkeypatch)

    async def take(limit, amounts):
        begin = clock.now
        for amount in amounts:
            await limit.take(amount)
        return clock.now - begin

    # A second's worth is free, so that 60 a minute are 1 + 10 in ten seconds.
    assert asyncio.run(take(rate_limit.Pace(60.0), [1] * 12)) == pytest.approx(10.0)
    assert asyncio.run(take(rate_limit.Pace(6000.0), [1000] * 4)) == pytest.approx(29.0)
    assert asyncio.run(take(rate_limit.Pace(0.0), [1e9] * 4)) == 0.0
    limit = rate_limit.Pace(6000.0)
    asyncio.run(take(limit, [1000]))
    limit.correct(-900)
    assert asyncio.run(take(limit, [1000])) == pytest.approx(0.0)


def test_waits_follow_the_server_and_grow_with_jitter():
    waits = [[rate_limit.wait_s(n, None) for _ in range(50)] for n in (1, 2, 5, 20)]
    for got, longest in zip(waits, (0.5, 1.0, 8.0, 60.0), strict=True):
        assert longest / 2 <= min(got) < max(got) <= longest
    assert 7.0 <= rate_limit.wait_s(1, {"retry-after": "7"}) <= 8.0
    assert 0.25 <= rate_limit.wait_s(1, {"retry-after-ms": "250"}) <= 1.25
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
    assert 28.0 <= rate_limit.wait_s(1, {"retry-after": email.utils.format_datetime(later)}) <= 31.0
    assert rate_limit.wait_s(1, {"retry-after": "99999999"}) <= 601.0
    assert rate_limit.wait_s(1, {"retry-after": "soon"}) <= 0.5


def test_answers_survive_a_torn_last_write(tmp_path):
    code = (
        "import os, pathlib, signal, sys\n"
        "from interp.llm.answer_cache import Answer, Cache\n"
        "cache = Cache(pathlib.Path(sys.argv[1]))\n"
        "for i in range(50):\n"
        "    cache.add(f'key {i}', 0, 'm', {'prompt': 'detect-1', 'content': 'x' * 3000}, Answer('{}', 1, 1, 0.5))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "judge" / "answers.sqlite"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    log = path.with_name("answers.sqlite-wal")
    whole = log.read_bytes()
    for cut in (0, 1, len(whole) // 2):
        shutil.copytree(path.parent, tmp_path / str(cut))
        torn = tmp_path / str(cut) / log.name
        torn.write_bytes(whole[: len(whole) - cut])
        cache = Cache(torn.with_name(path.name))
        kept = [bool(cache.get(f"key {i}")) for i in range(50)]
        n = sum(kept)
        assert kept == [True] * n + [False] * (50 - n)  # the last ones are lost, nothing in between
        assert n == {0: 50, 1: 49}.get(cut, n) and n > 10 and cache.totals.cost == n / 2
        cache.add("key 60", 0, "m", STORED, answer())
        assert cache.get("key 60") == [answer()]
        cache.close()


def test_the_cache_is_held_by_one_process_and_damage_is_named(tmp_path):
    first = Cache(tmp_path / "answers.sqlite")
    first.add("key", 0, "m", STORED, answer())
    with pytest.raises(UserError, match="held by another process"):
        Cache(tmp_path / "answers.sqlite")
    first.close()
    assert Cache(tmp_path / "answers.sqlite").totals == (1, 100, 10, 0.5)
    (tmp_path / "broken.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="cannot be read"):
        Cache(tmp_path / "broken.sqlite")


def test_half_a_character_at_the_end_of_an_answer_does_no_harm(tmp_path):
    judge = make_judge("http://127.0.0.1:9/v1", tmp_path)
    kept = judge._client.keep(judge._render(detect_tasks(1)[0]), "key", 0, "cut off \ud83d", None)
    assert kept.text == "cut off ?" and judge._client.cache.get("key") == [kept]
    judge.close()


def test_the_record_holds_what_was_asked(tmp_path):
    with serve() as server:
        judge = make_judge(server.url, tmp_path)
        judge.explain([explain_task(3)])
        judge.close()
    with sqlite3.connect(tmp_path / "judge" / "answers.sqlite") as db:
        ((prompt, model, data, text),) = db.execute("SELECT prompt, model, request, answer FROM answers").fetchall()
    assert (prompt, model) == ("explain-1", "rule") and word(3) in text
    assert word(3) in json.loads(zlib.decompress(data))


def test_an_estimate_comes_before_the_work(tmp_path, capsys):
    judge = make_judge("http://127.0.0.1:1/v1", tmp_path, price_in=2.0, price_out=8.0)
    one = detect_tasks(1)[0]
    judge.announce([[one] * 20, []], 1000)
    tokens = judge._render(one).tokens * 10 * 1000
    said = capsys.readouterr().err
    assert "about 10,000 requests to rule" in said and f"{tokens / 1e6:.1f} million tokens in" in said
    assert f"${tokens * 2 / 1e6 + 10_000 * 70 * 8 / 1e6:,.2f} at the configured prices" in said
