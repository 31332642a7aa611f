"""The cache of answers: what a kill leaves, and who may hold it."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from interp.llm.answer_cache import AnswerCache, CachedAnswer
from interp.llm.client import verify_answers
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


def written(path, n=5):
    """A closed cache of a few answers and a batch."""
    cache = AnswerCache(path)
    for i in range(n):
        cache.add(f"key {i}", 0, "m", "detect-1", "data", ANSWER)
    cache.record_batch("batch", "digest", fetched=False)
    cache.record_batch("batch", "digest", fetched=True)
    cache.close()
    return path


def refused(path, words):
    before = path.read_bytes()
    for _ in range(2):  # what is refused stays so
        with pytest.raises(UserError, match=f"cannot be read .*{words}.*: restore it, or delete it and pay again"):
            AnswerCache(path)
    assert path.stat().st_size == len(before)


def test_a_truncated_file_is_not_an_empty_cache(tmp_path):
    path = written(tmp_path / "judge" / "answers.sqlite")
    path.write_bytes(b"")
    refused(path, "its tables are not those that were made")
    with pytest.raises(UserError, match="its tables are not"):
        verify_answers(tmp_path)


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)"
COLUMNS = ", ".join(f"x AS {name}" for name in ("key", "attempt", "tokens_in", "tokens_out", "cost", "checksum"))


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END",
        "CREATE TABLE other (x)",
        "CREATE INDEX i ON answers (cost)",
        "ALTER TABLE answers ADD COLUMN x",
        "DROP TABLE batches",
        f"DROP TABLE answers; CREATE VIEW answers AS {ENDLESS} SELECT {COLUMNS} FROM c",
    ],
)
def test_tables_that_were_not_made_are_refused_before_they_are_read(tmp_path, statements):
    path = written(tmp_path / "answers.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(statements)
    refused(path, "its tables are not those that were made")


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM answers WHERE key = 'key 3'", "rows were removed"),
        ("DELETE FROM answers", "rows were removed"),
        ("DELETE FROM batches", "rows were removed"),
        ("INSERT INTO batches VALUES ('foreign', 'digest', 0)", "rows were removed, added"),
        ("UPDATE batches SET fetched = 0", "rows were removed, added or changed"),
        ("UPDATE answers SET checksum = 7 WHERE key = 'key 3'", "values of another kind"),
        ("UPDATE answers SET tokens_in = 9e999", "values of another kind"),
    ],
)
def test_rows_that_were_removed_added_or_changed_are_noticed(tmp_path, statement, words):
    path = written(tmp_path / "answers.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)
    refused(path, words)


def test_pages_that_refer_to_one_page_many_times_are_not_read_to_their_end(tmp_path):
    path = written(tmp_path / "answers.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db:
        ((root, size),) = db.execute(
            "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE name='answers'"
        )
    content = bytearray(path.read_bytes())
    pages = [content[start : start + size] for start in range(0, len(content), size)]
    leaf = pages[root - 1]
    for _ in range(6):  # each refers 500 times to the one before
        pages.append(leaf)
        child, n = len(pages), 500
        cell = child.to_bytes(4) + b"\x01"
        head = b"\x05\0\0" + n.to_bytes(2) + (size - len(cell)).to_bytes(2) + b"\0" + child.to_bytes(4)
        leaf = (head + (size - len(cell)).to_bytes(2) * n).ljust(size - len(cell), b"\0") + cell
    pages[root - 1] = leaf
    pages[0][28:32] = len(pages).to_bytes(4)
    path.write_bytes(b"".join(pages))
    refused(path, "interrupted")


def test_a_kill_while_the_file_is_made_leaves_none(tmp_path, monkeypatch):
    path = tmp_path / "answers.sqlite"

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", kill)
        patched.setattr(Path, "unlink", lambda *a, **k: None)
        with pytest.raises(KeyboardInterrupt):
            AnswerCache(path)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".tmp"
    left.with_name(f"{left.name}-journal").touch()
    written(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_another_process_makes_at_the_same_time_is_not_replaced(tmp_path, monkeypatch, has_links):
    path, link = tmp_path / "answers.sqlite", os.link

    def second(source, target):
        monkeypatch.setattr(os, "link", link)
        written(path)
        if not has_links:
            raise OSError("not supported")
        link(source, target)

    monkeypatch.setattr(os, "link", second)
    cache = AnswerCache(path)
    assert cache.totals.answers == 5
    cache.close()


def test_a_file_system_without_links_can_hold_the_file(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", fail)
    written(tmp_path / "answers.sqlite")
    assert list(tmp_path.iterdir()) == [tmp_path / "answers.sqlite"]


def test_the_log_of_a_file_that_is_gone_is_not_put_into_a_new_one(tmp_path):
    path = tmp_path / "answers.sqlite"
    subprocess.run([sys.executable, "-m", "tests.helpers.killed_cache", str(path)], cwd=ROOT, check=False)
    path.unlink()
    with pytest.raises(UserError, match=r"is missing, and answers.sqlite-wal next to it holds answers of it"):
        AnswerCache(path)
    path.with_name("answers.sqlite-wal").unlink()
    written(path)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: (_ for _ in ()).throw(sqlite3.OperationalError("no")))
    with pytest.raises(UserError, match=r"could not write .*answers.sqlite \(no\): free space"):
        AnswerCache(tmp_path / "answers.sqlite")
