"""Parquet files of others: of their columns no more is read than a bound allows.

Compression and dictionaries make gigabytes of kilobytes. What a file says of its columns is looked at before they are
read, and texts are read as dictionaries, whose size as texts is known before memory is taken for them.
"""

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Bytes that are always allowed, and how many times the bytes of the file.
_MAX_NUMBERS, _MAX_TIMES_LARGER = 2**27, 16
_MAX_TEXTS, _MAX_TIMES_LONGER = 2**26, 4
_MAX_TEXT_PER_ROW = 64  # on average, where that is more
_MAX_GROUPS = 2**14  # each takes a fraction of a millisecond


def read_columns(path: Path, names: Collection[str]) -> pa.Table:
    """The columns called one of `names`, as far as a file has them. How many rows it has, `pq.read_metadata` says.

    Raises:
      ValueError: a column holds lists or other values that are neither numbers nor texts, or they are far larger than
        the file.
      OSError, pa.ArrowException: the file is damaged.
    """
    schema, metadata, size = pq.read_schema(path), pq.read_metadata(path), path.stat().st_size
    fields = [field for field in schema if field.name in names]
    for field in fields:
        if not _is_flat(field.type):
            raise ValueError(f"column {field.name!r} is of {field.type}")
    texts = {field.name for field in fields if _is_text(field.type)}
    most_numbers = max(_MAX_NUMBERS, _MAX_TIMES_LARGER * size)
    most_text = max(_MAX_TEXTS, _MAX_TIMES_LONGER * size, _MAX_TEXT_PER_ROW * metadata.num_rows)
    if 8 * metadata.num_rows * len(fields) > most_numbers:
        raise ValueError("its columns are far larger than the file")
    n_bytes = 0
    for name, chunks in column_chunks(path, {field.name for field in fields}):
        unpacked = sum(chunk.total_uncompressed_size for chunk in chunks)
        n_bytes += unpacked
        if n_bytes > most_numbers or name in texts and unpacked > most_text:
            raise ValueError(f"column {name!r} is far larger than the file")
        if sum(chunk.num_values for chunk in chunks) != metadata.num_rows:
            raise ValueError(f"column {name!r} does not have a value for each row")
    with pq.ParquetFile(path, read_dictionary=list(texts)) as file:
        table = file.read(columns=[field.name for field in fields])
    if sum(map(_text_bytes, table.columns)) > most_text:
        raise ValueError("its texts are far larger than the file")
    return table.cast(pa.schema(fields)) if fields else table  # a table without columns has its rows


def column_chunks(path: Path, names: Collection[str]) -> Iterator[tuple[str, list[pq.ColumnChunkMetaData]]]:
    """What the file says of each of the columns called one of `names`, in its row groups.

    Raises:
      ValueError: it has more than 2^14 row groups, or they are far larger than the file.
      OSError: what it says is damaged.
    """
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
        groups = [metadata.row_group(group) for group in range(min(metadata.num_row_groups, _MAX_GROUPS + 1))]
        if len(groups) > _MAX_GROUPS:
            raise ValueError(f"it has more than {_MAX_GROUPS:,} row groups")
        if sum(group.total_byte_size for group in groups) > max(_MAX_NUMBERS, _MAX_TIMES_LARGER * path.stat().st_size):
            raise ValueError("its row groups are far larger than the file")
        for group in range(len(groups)):
            # Of a damaged description reading raises an error, and asking for it ends the process.
            next(file.iter_batches(batch_size=1, row_groups=[group], columns=list(names)), None)
    for leaf in range(metadata.num_columns):
        # pyarrow reads the column a.b together with one called a.
        for name in itertools.accumulate(metadata.schema.column(leaf).path.split("."), "{}.{}".format):
            if name in names:
                yield name, [group.column(leaf) for group in groups]


def _is_flat(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_flat(kind.value_type)
    known = (pa.types.is_primitive, pa.types.is_decimal, pa.types.is_null)
    return _is_text(kind) or any(is_kind(kind) for is_kind in known)


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def _text_bytes(column: pa.ChunkedArray) -> int:
    """The bytes of a dictionary's texts, each as often as it occurs; 0 of another column."""
    if not pa.types.is_dictionary(column.type) or not _is_text(column.type.value_type):
        return 0
    lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks)
    return sum(pc.sum(length).as_py() or 0 for length in lengths)
