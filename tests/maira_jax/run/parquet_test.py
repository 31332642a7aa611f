"""Columns of parquet files of others, read within bounds."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maira_jax.run import parquet

COLUMNS = {
    "number": [1, None, 3],
    "number.of": [0.5, 1.5, None],
    "text": ["a", None, "a"],
    "large": pa.array(["a", "b", None], pa.large_string()),
    "category": pa.array(["a", "b", "a"]).dictionary_encode(),
    "truth": [True, None, False],
    "none": pa.nulls(3),
    "bytes": [b"a", None, b"b"],
}


@pytest.mark.parametrize("name", COLUMNS)
def test_flat_columns_are_read_in_their_types(tmp_path, name):
    table = pa.table(COLUMNS | {"list": [[1], [2], [3]]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    assert (
        parquet.read_columns(tmp_path / "x.parquet", [name, "absent"]).to_pydict() == table.select([name]).to_pydict()
    )
    assert parquet.read_columns(tmp_path / "x.parquet", [name]).schema.types == table.select([name]).schema.types
    assert parquet.read_columns(tmp_path / "x.parquet", list(COLUMNS)).equals(table.select(list(COLUMNS)))
    assert parquet.read_columns(tmp_path / "x.parquet", []).num_rows == 3


def _repeated(text, n):
    """A column of `n` rows, written as a dictionary of one text."""
    return pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), [text])


REFUSED = {
    "texts": (lambda: {"x": _repeated("a" * 2**12, 2**15)}, "its texts are far larger than the file"),
    "one text": (lambda: {"x": ["a" * (2**26 + 1)]}, "column 'x' is far larger than the file"),
    "numbers": (lambda: {"x": np.zeros(2**24 + 1, np.int8)}, "its columns are far larger than the file"),
    "lists": (lambda: {"x": [[1]]}, "column 'x' is of list"),
    "fields": (lambda: {"x": [{"a": 1}]}, "column 'x' is of struct"),
    "wide values": (lambda: {"x": pa.array([b"ab"], pa.binary(2))}, "column 'x' is of fixed_size_binary"),
}


@pytest.mark.parametrize(("columns", "message"), REFUSED.values(), ids=REFUSED)
def test_columns_that_are_far_larger_than_the_file_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns()), tmp_path / "x.parquet", compression="zstd")
    with pytest.raises(ValueError, match=message):
        parquet.read_columns(tmp_path / "x.parquet", ["x"])
