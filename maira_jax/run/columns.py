"""Columns of the tables and JSON lines that stages write: each is declared once, with its type and its meaning.

The meaning goes with the column into parquet files, and into docs/reference/files.md.
"""

import pyarrow as pa

_MEANING = b"meaning"


def column(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    """Declares a column; its meaning begins with a small letter and has no full stop."""
    return pa.field(name, kind, metadata={_MEANING: meaning})


def meaning_of(field: pa.Field) -> str:
    """What a declared column means."""
    return field.metadata[_MEANING].decode()
