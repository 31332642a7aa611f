"""JSON Lines files that a killed run resumes from: cut off after what is kept, or written part by part.

Parts are files of their own, whichever process of a run computes them, so what a killed run leaves does not depend on
the number of its processes.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maira_jax.errors import UserError
from maira_jax.run import files, processes, storage

PARTS = "parts"  # the folder of a stage's parts
EARLIER = "earlier"  # the folder of parts of a smaller result, from which the present one continues
PHASES = "phases"  # the folder of what a stage of several phases keeps until it is finished
_DIGEST = "sha256"
LEFT = (PARTS, EARLIER, PHASES)  # what `Stage` removes when it is finished


def line(record: Mapping[str, Any], sort_keys: bool = False) -> str:
    """One record as a line of text, its end included."""
    return json.dumps(record, ensure_ascii=False, sort_keys=sort_keys) + "\n"


def read(path: Path, again: str, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The records of a file, none if it does not exist; a last line without its end, left by a kill, is dropped.

    Args:
      path: the file.
      again: the command that writes it anew, such as "train again"; for the message.
      required: keys that every record must have.

    Raises:
      UserError: a line is not a JSON object with these keys.
    """
    records = []
    for number, text in enumerate(_whole_lines(path), start=1):
        try:
            record = files.parse_json(text)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not record.keys() >= set(required):
            raise _refusal(path, number, again)
        records.append(record)
    return records


def truncate(path: Path, n: int) -> None:
    """Cuts a file off after its first `n` lines."""
    if path.exists():
        os.truncate(path, sum(len(text) + 1 for text in _whole_lines(path)[:n]))


def set_parts_aside(folder: Path) -> None:
    """Keeps the parts of an attempt at a smaller result for `read_earlier`, apart from those of the present one."""
    if (folder / PARTS).is_dir():
        number = len(list((folder / EARLIER).glob("*")))
        (folder / EARLIER).mkdir(exist_ok=True)
        storage.move(folder / PARTS, folder / EARLIER / f"{number:03d}")


def read_earlier(folder: Path, result: str, again: str) -> Iterator[dict[str, Any]]:
    """The records of the result that is there, and of attempts at smaller ones.

    Args:
      folder: the stage's folder.
      result: the name of the file that all parts are joined into.
      again: the command that writes it anew; for messages.
    """
    yield from read(folder / result, again)
    for path in sorted((folder / EARLIER).glob("*/*.jsonl")):
        yield from _read_part(path, again)


class PartFiles:
    """The records of a stage, part by part, in a folder of the stage's folder. Made by all processes of a run together.

    Args:
      folder: the stage's folder.
      expected: the name of each part, in order, with some keys and values of each of its records.
      again: the command that writes the parts anew, such as "steer again"; for messages.

    Attributes:
      mine: names of the missing parts that this process is to write.
      n_found: number of records in the parts that an earlier attempt left.
      n_mine: number of records in the parts of `mine`.

    Raises:
      UserError: a part is damaged or of another run.
    """

    def __init__(self, folder: Path, expected: Mapping[str, Sequence[Mapping[str, Any]]], again: str):
        self._folder, self._expected, self._again = folder / PARTS, expected, again
        found = set(processes.broadcast(self._found() if processes.is_first() else None))
        self.mine = [name for name in expected if name not in found][processes.index() :: processes.count()]
        self.n_found, self.n_mine = (sum(len(expected[name]) for name in names) for names in (found, self.mine))

    def write(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes a part, whole or not at all."""
        text = "".join(map(line, records))
        with files.atomic_path(self._path(name)) as path:
            path.write_text(text + line({_DIGEST: _digest(text.encode())}), encoding="utf-8")

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, part by part, when every process has written its own.

        Raises:
          UserError: a part is missing, damaged or of another run.
        """
        storage.fetch(self._folder)
        for name in self._expected:
            yield from self._read(name)

    def _found(self) -> list[str]:
        """The names of the parts that are there, after a look at what they hold."""
        # Listed, and not asked for one by one: a network file system may remember for a while that a file was missing.
        there = {path.stem for path in self._folder.glob("*.jsonl")}
        found = [name for name in self._expected if name in there]
        for name in found:
            self._read(name)
        return found

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    def _read(self, name: str) -> list[dict[str, Any]]:
        path, expected = self._path(name), self._expected[name]
        records = _read_part(path, self._again)
        for number, (known, record) in enumerate(itertools.zip_longest(expected, records), start=1):
            if known is None or record is None or not known.items() <= record.items():
                raise _refusal(path, number, self._again)
        return records


def _read_part(path: Path, again: str) -> list[dict[str, Any]]:
    """The records of a part, whose last line has the digest of the lines before it."""
    *records, last = read(path, again) or [{}]
    written = b"".join(text + b"\n" for text in _whole_lines(path)[:-1])
    if last != {_DIGEST: _digest(written)}:
        raise _refusal(path, len(records) + 1, again)
    return records


def _digest(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _refusal(path: Path, number: int, again: str) -> UserError:
    return UserError(f"{path}, line {number}, is damaged or of another run: delete {path.parent} and {again}")
