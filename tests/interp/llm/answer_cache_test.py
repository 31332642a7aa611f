"""The cache of answers: what a kill leaves, and who may hold it."""

import contextlib
import random
import shutil
import sqlite3
import subprocess
import sys

import pytest

from interp.llm.answer_cache import AnswerCache, CachedAnswer
from interp.llm.ledger import AnswerLedger
from interp.llm.section import JudgeSection
from maira_jax.errors import UserError
from tests.helpers.judge import detect_questions, interpreters, make_client
from tests.helpers.paths import ROOT

ANSWER = CachedAnswer("{}", 100, 10, 0.5)


def test_answers_survive_a_torn_last_write(tmp_path):
    path = tmp_path / "judge" / "answers.sqlite"
    subprocess.run([sys.executable, "-m", "tests.helpers.killed_cache", str(path)], cwd=ROOT, check=False)
    log = path.with_name("answers.sqlite-wal")
    whole = log.read_bytes()
    for cut in (0, 1, len(whole) // 2):
        shutil.copytree(path.parent, tmp_path / str(cut))
        torn = tmp_path / str(cut) / log.name
        torn.write_bytes(whole[: len(whole) - cut])
        cache = AnswerCache(torn.with_name(path.name))
        kept = [bool(cache.get(f"key {i}")) for i in range(50)]
        n = sum(kept)
        assert kept == [True] * n + [False] * (50 - n)  # the last ones are lost, nothing in between
        assert n == {0: 50, 1: 49}.get(cut, n) and n > 10 and cache.totals.cost == n / 2
        cache.add("key 60", 0, "m", "detect-1", "data", ANSWER)
        assert cache.get("key 60") == [ANSWER]
        cache.close()


def test_the_cache_is_held_by_one_process_and_damage_is_named(tmp_path):
    first = AnswerCache(tmp_path / "answers.sqlite")
    first.add("key", 0, "m", "detect-1", "data", ANSWER)
    with pytest.raises(UserError, match="held by another process"):
        AnswerCache(tmp_path / "answers.sqlite")
    first.close()
    assert AnswerCache(tmp_path / "answers.sqlite").totals == (1, 100, 10, 0.5)
    (tmp_path / "broken.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="cannot be read"):
        AnswerCache(tmp_path / "broken.sqlite")


def test_half_a_character_at_the_end_of_an_answer_does_no_harm(tmp_path):
    request = interpreters(make_client("http://127.0.0.1:9/v1", tmp_path))[1].detect_request(detect_questions(1)[0])
    ledger = AnswerLedger(JudgeSection(model="m"), tmp_path / "answers.sqlite")
    kept = ledger.record(request, "key", "cut off \ud83d", None)
    assert kept.text == "cut off ?" and ledger.cache.get("key") == [kept]
    ledger.close()


def test_no_flipped_bit_of_an_answer_goes_unnoticed(tmp_path):
    cache = AnswerCache(tmp_path / "answers.sqlite")
    for i in range(20):
        cache.add(f"key {i}", 0, "m", "detect-1", {"text": f"report {i}"}, CachedAnswer(f"answer {i}", 100, 10, 0.5))
    cache.close()
    whole, rng, found = (tmp_path / "answers.sqlite").read_bytes(), random.Random(0), 0
    begin = whole.index(b"answer 0") - 2000  # the pages before hold the schema
    for number in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(begin, len(whole))] ^= 1 << rng.randrange(8)
        path = tmp_path / f"{number}.sqlite"
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            cache = AnswerCache(path)
            for i in range(20):
                with contextlib.suppress(UserError):
                    assert [answer.text for answer in cache.get(f"key {i}")] in ([f"answer {i}"], [])
            try:
                cache.verify()
            except UserError:
                found += 1
            cache.close()
    assert found > 30  # of the others most are in what is free


@pytest.mark.parametrize(("error", "says"), [("database is locked", "held by another"), ("disk is full", "free space")])
def test_a_full_disk_is_not_another_process(tmp_path, error, says):
    cache = AnswerCache(tmp_path / "answers.sqlite")
    assert says in str(cache._refusal(sqlite3.OperationalError(error)))
    cache.close()
