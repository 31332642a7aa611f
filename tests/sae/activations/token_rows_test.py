"""tokens.parquet: its columns, and that reading gives the rows that were written."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maira_jax.inputs.tokens import TOKEN_FILTERS, Kind, token_filter_mask
from sae.activations import token_rows
from sae.activations.token_rows import TokenRows
from tests.helpers.sae import assert_same_tokens

IMAGE = [Kind.IMAGE] * 3 + [Kind.IMAGE_LAST]
SEQUENCES = (
    [Kind.BOS, Kind.BOILERPLATE, *IMAGE, Kind.BOILERPLATE, *IMAGE, Kind.PRIOR_REPORT, Kind.FINDINGS, Kind.EOS],
    [*IMAGE],  # ends, as the next begins, with an image
    [],
    [*IMAGE, Kind.INDICATION, Kind.TECHNIQUE, Kind.COMPARISON],
)


def rows_of(token_filter):
    kept = [np.flatnonzero(token_filter_mask(np.array(kinds, np.int8), token_filter)) for kinds in SEQUENCES]
    kind = np.concatenate([np.array(kinds, np.int8)[at] for kinds, at in zip(SEQUENCES, kept, strict=True)])
    study = np.repeat(np.arange(len(kept), dtype=np.int32), [len(at) for at in kept])
    return TokenRows(study, np.concatenate(kept).astype(np.int32), np.arange(len(kind), dtype=np.int32), kind)


@pytest.mark.parametrize("token_filter", TOKEN_FILTERS)
def test_rows_are_read_as_they_were_written(tmp_path, monkeypatch, token_filter):
    monkeypatch.setattr(token_rows, "_GROUP_ROWS", 5)
    rows, path = rows_of(token_filter), tmp_path / "tokens.parquet"
    names = pa.chunked_array([["a", "b"], ["c", "d"]])
    rows.write(path, names)
    assert_same_tokens(TokenRows.read(path, np.searchsorted(rows.study, np.arange(len(SEQUENCES)))), rows)
    written = pq.read_table(path)
    assert written["study_id"].to_pylist() == ["abcd"[i] for i in rows.study]
    assert set(written["section"].to_pylist()) == {
        "image" if kind == Kind.IMAGE_LAST else Kind(kind).name.lower() for kind in rows.kind
    }
    assert {str(field.type) for field in written.schema if field.name in ("study_id", "section")} == {"string"}


def test_rows_that_are_no_tokens_have_no_section(tmp_path):
    rows = TokenRows.without_tokens(2, 2)
    rows.write(tmp_path / "tokens.parquet", pa.chunked_array([["a", "b"]]))
    assert pq.read_table(tmp_path / "tokens.parquet").to_pydict() == {
        "study_id": ["a", "a", "b", "b"], "position": [0, 1, 0, 1], "token_id": [-1] * 4, "section": [None] * 4
    }  # fmt: skip
    assert_same_tokens(TokenRows.read(tmp_path / "tokens.parquet", np.array([0, 2])), rows)
