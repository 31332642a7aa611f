"""Answers of language models, kept on disk: what was answered once is never asked, or paid for, again."""

import contextlib
import functools
import hashlib
import itertools
import json
import operator
import os
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
CREATE TABLE answers (
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
CREATE TABLE batches (
  id TEXT PRIMARY KEY,          -- as the provider names it
  digest TEXT NOT NULL,         -- SHA-256 of the uploaded file
  fetched INTEGER NOT NULL
) WITHOUT ROWID;
"""
_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"


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

    The file is made with its tables in one step, and its header holds a mark of all rows (`_mark`), so that one which
    was truncated, or has lost or gained rows, is noticed.

    Every answer is a transaction of its own in a write-ahead log: a killed process loses none that `add` has returned
    from, and a torn last write is dropped when the file is opened again. One process at a time may hold the file. Where
    the file stands for one in a bucket, a copy is sent there every minute and by `close`.

    Args:
      path: the SQLite file; it and its folder are made.

    Raises:
      UserError: the file is not readable or not what this class wrote, or another process holds it.
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
        self._create_if_missing()
        with contextlib.ExitStack() as on_refusal:
            try:
                db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
                self._db = on_refusal.enter_context(contextlib.closing(db))
                self.totals = self._checked()
            except (*_DAMAGE, ValueError) as error:
                raise self._refusal(error) from error
            except (TypeError, OverflowError) as error:
                raise self._refusal(ValueError("a column holds values of another kind")) from error
            on_refusal.pop_all()
        files.remove_leftovers(path.parent, f".{path.name}.*.tmp*")  # SQLite's journals of such files, too

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
        checksum = _checksum(row)
        self._write("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, checksum), _mark(checksum))
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
        with self._lock:
            replaced = self._rows("SELECT * FROM batches WHERE id = ?", (batch_id,))
        row = (batch_id, digest, int(fetched))
        change = functools.reduce(operator.xor, (_mark(_checksum(each)) for each in (*replaced, row)))
        self._write("INSERT OR REPLACE INTO batches VALUES (?, ?, ?)", row, change)

    def close(self) -> None:
        self._send()
        self._db.close()

    def _create_if_missing(self) -> None:
        """Makes the file of an empty cache, in one step: a kill leaves no file without tables.

        Raises:
          UserError: the folder cannot be written, or there is the log of a file that is gone.
        """
        logs = sorted(self._path.parent.glob(f"{self._path.name}-*"))
        if self._path.exists():
            return
        if logs:  # SQLite would put what it holds into the new file
            raise UserError(
                f"{self._path} is missing, and {logs[0].name} next to it holds answers of it: restore it, or delete "
                "that file too and pay again"
            )
        copy = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with contextlib.closing(sqlite3.connect(copy)) as db:
                db.executescript(f"BEGIN; {_TABLES} COMMIT;")
            _give_name(copy, self._path)
        except (sqlite3.DatabaseError, OSError) as error:
            raise self._refusal(sqlite3.OperationalError(getattr(error, "strerror", "") or str(error))) from error
        finally:
            copy.unlink(missing_ok=True)

    def _checked(self) -> CacheTotals:
        """The sums over all answers of a file that holds what was written.

        Raises:
          ValueError, TypeError, OverflowError: it holds something else.
          sqlite3.DatabaseError: it is damaged, or held by another process.
        """
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)  # a damaged page may ask for any size
        # Exclusive: two processes that asked the same questions would pay twice.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("BEGIN EXCLUSIVE")
        # Before any other statement: in place of a table there may be a view, whose rows do not end.
        if self._db.execute(_SCHEMA).fetchall() != _schema():
            raise ValueError("its tables are not those that were made")
        self._db.execute("COMMIT")
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            self._db.execute(f"PRAGMA {pragma}")
        # A row takes fewer steps than it has bytes, unless pages of a table refer to one page many times.
        (n_pages,), (page_bytes,) = (self._db.execute(f"PRAGMA page_{name}").fetchone() for name in ("count", "size"))
        self._db.set_progress_handler(lambda: True, n_pages * page_bytes)
        if self._mark_of_rows() != self._kept_mark():
            raise ValueError("rows were removed, added or changed since they were written")
        n, *sums = self._db.execute(
            "SELECT COUNT(checksum), TOTAL(tokens_in), TOTAL(tokens_out), TOTAL(cost) FROM answers"
        ).fetchone()
        self._db.set_progress_handler(None, 0)
        return CacheTotals(n, int(sums[0]), int(sums[1]), float(sums[2]))

    def _mark_of_rows(self) -> int:
        of_batches = (_checksum(row) for row in self._db.execute("SELECT * FROM batches"))
        of_answers = (checksum for (checksum,) in self._db.execute("SELECT checksum FROM answers"))
        return functools.reduce(operator.xor, map(_mark, itertools.chain(of_batches, of_answers)), 0)

    def _kept_mark(self) -> int:
        """The mark of all rows that the file's header holds."""
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

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
            if not str(error).startswith(("no such", "Could not decode", "interrupted")):
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

    def _write(self, statement: str, row: tuple[Any, ...], change: int) -> None:
        """Writes a row and, in the same transaction, changes the mark of all rows by `change`."""
        try:
            with self._lock, self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(statement, row)
                self._db.execute(f"PRAGMA user_version = {self._kept_mark() ^ change}")
        except sqlite3.DatabaseError as error:
            raise self._refusal(error) from error
        if time.monotonic() >= self._send_at:
            self._send()


def _schema() -> list[tuple[Any, ...]]:
    """What SQLite says of the tables of a new file."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.executescript(_TABLES)
        return db.execute(_SCHEMA).fetchall()


def _give_name(copy: Path, path: Path) -> None:
    """Has a file be at `path` too, unless another process has just made one there."""
    try:
        os.link(copy, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not path.exists():
            copy.replace(path)


def _mark(checksum: bytes) -> int:
    """What a row contributes to the mark of all rows, their exclusive or: SQLite keeps 31 bits and a sign."""
    return int.from_bytes(checksum[:4]) >> 1


def _checksum(values: Sequence[Any]) -> bytes:
    """Of a row of the table of answers, but for the checksum itself."""
    return hashlib.sha256(repr(tuple(values)).encode(errors="surrogatepass")).digest()[:8]
