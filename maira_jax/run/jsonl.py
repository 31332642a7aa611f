"""JSON Lines files that a killed run resumes from: appended part by part, read back, and cut off after what is kept."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from maira_jax.errors import UserError
from maira_jax.run import files


def line(record: Mapping[str, Any], sort_keys: bool = False) -> str:
    """One record as a line of text, its end included."""
    return json.dumps(record, ensure_ascii=False, sort_keys=sort_keys) + "\n"


def append(file: BinaryIO, records: Iterable[Mapping[str, Any]], sort_keys: bool = False) -> None:
    """Appends records to an unbuffered file and waits until they are on disk.

    Raises:
      UserError: the disk is full.
    """
    files.append(file, "".join(line(record, sort_keys) for record in records))


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
            record = json.loads(text)
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


def resume(path: Path, expected: Sequence[Mapping[str, Any]], parts: Iterable[int], again: str) -> list[dict[str, Any]]:
    """What an earlier attempt left of a file, by whole parts; what is after them is cut off.

    Parts keep their bounds, so that every record is computed in the same batch as in an uninterrupted run.

    Args:
      path: the file.
      expected: some keys and values of every record of the whole file, in order.
      parts: how many records are written together, from the first.
      again: the command that writes the file anew, such as "train again"; for the message.

    Raises:
      UserError: a line is damaged, or not what `expected` says.
    """
    found = read(path, again)
    kept = 0
    for size in parts:
        if kept + size > len(found):
            break
        kept += size
    for number, record in enumerate(found, start=1):
        known = number <= len(expected) and (number > kept or expected[number - 1].items() <= record.items())
        if not known:
            raise _refusal(path, number, again)
    truncate(path, kept)
    return found[:kept]


def _whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def _refusal(path: Path, number: int, again: str) -> UserError:
    return UserError(f"{path}, line {number}, is damaged or of another run: delete {path.parent} and {again}")
