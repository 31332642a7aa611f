"""Compressed matrices against whole ones."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sae.kernels import kept_entries

find = jax.jit(kept_entries.entries, static_argnames=("size", "spans", "by_column"))


def check(mask: np.ndarray, size: int, spans: tuple[int, ...] = (), by_column: bool = False) -> None:
    found = find(jnp.asarray(mask), size, spans, by_column)
    rows, columns = np.nonzero(mask.T if by_column else mask)
    n = len(rows)
    np.testing.assert_array_equal(found.used, np.arange(size) < n)
    np.testing.assert_array_equal(found.rows, np.pad(rows, (0, size - n)))
    np.testing.assert_array_equal(found.columns, np.pad(columns, (0, size - n)))
    width = mask.shape[0 if by_column else 1]
    bounds = np.cumsum((0, *(spans or (width,))))
    spans_of = list(itertools.pairwise(bounds))
    counts = [
        ((columns >= start) & (columns < end))[rows == row].sum()
        for row in range(mask.size // width)
        for start, end in spans_of
    ]
    np.testing.assert_array_equal(found.starts, np.cumsum([0, *counts]))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (5, 32), (33, 70), (64, 96)], ids=str)
def test_entries_are_those_of_nonzero(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    for by_column in (False, True):
        check(mask, mask.size, by_column=by_column)
        check(mask, max(1, int(mask.sum())), by_column=by_column)


@pytest.mark.parametrize("spans", [(96,), (32, 64), (1, 31, 33, 31), (40, 40, 16), (95, 1)], ids=str)
def test_spans_that_begin_anywhere(spans):
    mask = np.random.default_rng(1).random((17, 96)) < 0.3
    check(mask, mask.size, spans)


def test_products_are_those_of_whole_matrices():
    rng = np.random.default_rng(2)
    f = np.where(rng.random((40, 70)) < 0.1, rng.normal(size=(40, 70)), 0).astype(np.float32)
    w = rng.normal(size=(70, 24)).astype(np.float32)
    found = find(jnp.asarray(f != 0), 500)
    values = jnp.where(found.used, f[found.rows, found.columns], 0)
    product = jax.jit(kept_entries.product)
    np.testing.assert_allclose(product(values, found.columns, found.starts, jnp.asarray(w)), f @ w, atol=1e-5)
    sums = product(values, found.columns, found.starts, jnp.ones(70))
    np.testing.assert_allclose(sums, f.sum(1), atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [1, 24 * 4 * 7, 2**22])
def test_sampled_products_in_chunks_of_any_size(monkeypatch, chunk_bytes):
    monkeypatch.setattr(kept_entries, "_CHUNK_BYTES", chunk_bytes)
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=(n, 24)).astype(np.float32) for n in (40, 70))
    rows, columns = rng.integers(0, 40, 100), rng.integers(0, 70, 100)
    found = jax.jit(functools.partial(kept_entries.sampled_product))(a, b, rows, columns)
    np.testing.assert_allclose(found, (a @ b.T)[rows, columns], atol=1e-5)


def test_a_compiled_product_has_no_whole_matrix():
    """On the CPU: jaxlib's own routine is called, not a scatter into a matrix with zeros."""
    values, columns, starts = jnp.ones(50), jnp.zeros(50, jnp.int32), jnp.zeros(4001, jnp.int32)
    program = jax.jit(kept_entries.product).lower(values, columns, starts, jnp.ones((3000, 8))).compile().as_text()
    assert "cpu_csr_sparse_dense_ffi" in program
    assert "4000,3000" not in program
