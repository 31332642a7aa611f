"""Reads a CSV file whose columns are checked."""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from maira_jax.errors import UserError


def rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file, gzipped when it ends in .gz.

    Args:
      path: the file.
      columns: those that it must have; others are passed through.

    Raises:
      UserError: the file is missing, is not readable as UTF-8 CSV, lacks a column, or has a row with fewer
        fields than columns.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig", newline="") as file
        ):
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}: give the file as it is distributed")
            for row in reader:
                if any(value is None for name, value in row.items() if name):  # some tables end in empty columns
                    raise UserError(f"{path}, line {reader.line_num}: fewer fields than columns: restore the file")
                yield row
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: check studies.path") from error
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} is not a readable CSV file ({error}): restore the file") from error
