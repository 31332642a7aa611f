"""Answers of language models, kept on disk: what was answered once is never asked, or paid for, again."""

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maira_jax.errors import UserError, first_line
from maira_jax.run import files, storage

_MAX_VALUE = 2**28  # bytes of an answer, and of all else in a row
# What SQLite raises of a damaged file; of a page that asks for more than it may, now and then, that memory is short.
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError)
# Seconds after which new answers are sent to the bucket that the folder may stand for, and least ratio of these seconds
# to those that sending takes.
_SEND_SECONDS, _SEND_RATIO = 60.0, 20.0
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT NOT NULL,            -- digest of model, parameters, prompt and data
  attempt INTEGER NOT NULL,     -- from 0; there are several where answers could not be used
  prompt TEXT NOT NULL,
  model TEXT NOT NULL,
  request BLOB NOT NULL,        -- zlib of JSON; instructions by name, pictures by digest
  answer TEXT NOT NULL,
  tokens_in INTEGER NOT NULL,
  tokens_out INTEGER NOT NULL,
  cost REAL NOT NULL,           -- US dollars
  checksum BLOB NOT NULL,       -- of the others
  PRIMARY KEY (key, attempt)
);
CREATE TABLE IF NOT EXISTS batches (
  id TEXT PRIMARY KEY,          -- as the provider names it
  digest TEXT NOT NULL,         -- SHA-256 of the uploaded file
  fetched INTEGER NOT NULL
) WITHOUT ROWID;
"""


class CachedAnswer(NamedTuple):
    """What a server answered.

    Attributes:
      text: the content of the message.
      tokens_in, tokens_out: the tokens of the request and of the answer, as the server counted them.
      cost: what the answer cost in US dollars.
    """

    text: str
    tokens_in: int
    tokens_out: int
    cost: float


class CacheTotals(NamedTuple):
    """Sums over all kept answers."""

    answers: int
    tokens_in: int
    tokens_out: int
    cost: float


class AnswerCache:
    """The answers of one run directory, in a SQLite file.

    Every answer is a transaction of its own in a write-ahead log: a killed process loses none that `add` has returned
    from, and a torn last write is dropped when the file is opened again. One process at a time may hold the file. Where
    the file stands for one in a bucket, a copy is sent there every minute and by `close`.

    Args:
      path: the SQLite file; it and its folder are made.

    Raises:
      UserError: the file is not readable, or another process holds it.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(sqlite3.OperationalError(error.strerror or str(error))) from error
        storage.fetch(path.parent)
        self._send_at = time.monotonic() + _SEND_SECONDS
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
            self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)  # a damaged page may ask for any size
            # Exclusive: two processes that asked the same questions would pay twice.
            for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
            row = self._db.execute(
                "SELECT COUNT(checksum), TOTAL(tokens_in), TOTAL(tokens_out), TOTAL(cost) FROM answers"
            ).fetchone()
        except _DAMAGE as error:
            raise self._refusal(error) from error
        files.remove_leftovers(path.parent, f".{path.name}.*.tmp")
        self.totals = CacheTotals(row[0], int(row[1]), int(row[2]), row[3])

    def get(self, key: str) -> list[CachedAnswer]:
        """All answers to a request, in the order in which they came."""
        with self._lock:
            rows = self._rows("SELECT * FROM answers WHERE key = ? ORDER BY attempt", (key,))
        return [self._answer(row) for row in rows]

    def verify(self) -> int:
        """Compares every answer with its checksum; returns how many there are.

        Raises:
          UserError: one has changed.
        """
        with self._lock:
            damaged = self._rows("PRAGMA integrity_check") != [("ok",)]
            rows = self._rows("SELECT * FROM answers")
        if damaged:
            raise self._refusal(sqlite3.DatabaseError("its pages contradict each other"))
        return sum(1 for row in rows if self._answer(row))

    def add(self, key: str, attempt: int, model: str, prompt: str, data: Any, answer: CachedAnswer) -> None:
        """Keeps an answer; when this returns, it survives the process.

        Args:
          key: digest of the request.
          attempt: how many answers to the request there were before.
          model: the model that answered.
          prompt: name of the prompt.
          data: what the prompt was asked about, as JSON can hold it.
          answer: the answer.

        Raises:
          UserError: the disk is full.
        """
        row = (key, attempt, prompt, model, zlib.compress(json.dumps(data).encode()), *answer)
        self._write("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, _checksum(row)))
        n, tokens_in, tokens_out, cost = self.totals
        tokens_in, tokens_out = tokens_in + answer.tokens_in, tokens_out + answer.tokens_out
        self.totals = CacheTotals(n + 1, tokens_in, tokens_out, cost + answer.cost)

    def batches(self, fetched: bool) -> dict[str, str]:
        """Batch id -> digest of its file, for all batches that were submitted and have been fetched, or have not."""
        with self._lock:
            rows = self._rows("SELECT id, digest FROM batches WHERE fetched = ?", (int(fetched),))
        return dict(rows)

    def record_batch(self, batch_id: str, digest: str, fetched: bool) -> None:
        """Records that a batch was submitted to the provider, or fetched."""
        self._write("INSERT OR REPLACE INTO batches VALUES (?, ?, ?)", (batch_id, digest, int(fetched)))

    def close(self) -> None:
        self._send()
        self._db.close()

    def _rows(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except _DAMAGE as error:
            raise self._refusal(error) from error

    def _answer(self, row: tuple[Any, ...]) -> CachedAnswer:
        """The answer in a row of the table, whose checksum must be right."""
        *values, checksum = row
        if checksum != _checksum(values):
            raise self._refusal(ValueError("an answer is not what was written"))
        return CachedAnswer(*values[-len(CachedAnswer._fields) :])

    def _refusal(self, error: Exception) -> UserError:
        """Why the file cannot be used, and what helps."""
        reason = first_line(error)
        if isinstance(error, sqlite3.OperationalError):
            if "locked" in str(error):
                return UserError(f"{self._path} is held by another process ({reason}): wait until that run has ended")
            if not str(error).startswith("no such"):
                return UserError(f"could not write {self._path} ({reason}): free space, or make its folder writable")
        return UserError(f"{self._path} cannot be read ({reason}): restore it, or delete it and pay again")

    def _send(self) -> None:
        """Sends a copy to the bucket, if there is one."""
        if not storage.is_remote(self._path):
            return
        begin = time.monotonic()
        copy = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with self._lock, contextlib.closing(sqlite3.connect(copy)) as target:
                self._db.backup(target)
            storage.send_copy(copy, self._path)
        finally:
            copy.unlink(missing_ok=True)
        now = time.monotonic()
        self._send_at = now + max(_SEND_SECONDS, _SEND_RATIO * (now - begin))

    def _write(self, statement: str, row: tuple[Any, ...]) -> None:
        try:
            with self._lock:
                self._db.execute(statement, row)
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from error
        if time.monotonic() >= self._send_at:
            self._send()


def _checksum(values: Sequence[Any]) -> bytes:
    """Of a row of the table of answers, but for the checksum itself."""
    return hashlib.sha256(repr(tuple(values)).encode(errors="surrogatepass")).digest()[:8]
