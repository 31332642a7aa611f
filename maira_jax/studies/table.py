"""Reads a CSV file whose columns are checked."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from maira_jax.errors import UserError

_MAX_ROW = 2**20  # characters; the csv module would look at a row's fields when it is in memory


class _RowLines(Iterator[str]):
    """The lines of a CSV file, of which a row may have several.

    Attributes:
      row_length: characters read since it was last set to 0, which it is to be at the end of each row.
    """

    def __init__(self, file: TextIO, path: Path):
        self._file, self._path = file, path
        self.row_length = 0

    def __next__(self) -> str:
        line = self._file.readline(_MAX_ROW + 1 - self.row_length)
        self.row_length += len(line)
        if self.row_length > _MAX_ROW:
            raise UserError(f"{self._path} has a row of more than {_MAX_ROW} characters: restore the file")
        if not line:
            raise StopIteration
        return line


def rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file, gzipped when it ends in .gz.

    Args:
      path: the file.
      columns: those that it must have; others are passed through.

    Raises:
      UserError: the file is missing, is not readable as UTF-8 CSV, lacks a column, or has a row of more than
        2^20 characters or with fewer fields than columns.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            lines = _RowLines(file, path)
            reader = csv.DictReader(lines)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}: give the file as it is distributed")
            lines.row_length = 0
            for row in reader:
                lines.row_length = 0
                if any(value is None for name, value in row.items() if name):  # some tables end in empty columns
                    raise UserError(f"{path}, line {reader.line_num}: fewer fields than columns: restore the file")
                yield row
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check studies.path") from error
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} is not a readable CSV file ({error}): restore the file") from error
