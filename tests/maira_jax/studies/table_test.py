"""Tables whose rows have no end."""

import gzip
from pathlib import Path

import pytest

from maira_jax.errors import UserError
from maira_jax.studies import table

_LONG = 2**20


@pytest.mark.parametrize(
    "text",
    ["a,b\n" + "1," * _LONG, "a," * _LONG, "a,b\n" + '"\n",' * _LONG],
    ids=["a row in one line", "the header", "a row in many lines"],
)
@pytest.mark.parametrize("name", ["studies.csv", "studies.csv.gz"])
def test_a_row_that_is_too_long_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    with pytest.raises(UserError, match=rf"{name} has a row of more than 1048576 characters: restore the file"):
        list(table.rows(path, ("a",)))


def test_a_table_that_is_longer_than_a_row_may_be_is_read(tmp_path: Path) -> None:
    """Its rows have several lines, and some of these are empty."""
    path, text = tmp_path / "studies.csv.gz", "x" * 50_000
    path.write_bytes(gzip.compress(("a,b\r\n" + f'1,"{text}\n{text}"\r\n\r\n' * 20).encode()))
    assert list(table.rows(path, ("a",))) == [{"a": "1", "b": f"{text}\n{text}"}] * 20
