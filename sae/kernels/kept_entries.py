"""Sparse products of the kept entries of a batch, which one CPU multiplies far faster than whole matrices.

A batch keeps k of thousands of features per token. What follows the selection then costs about as many operations as
there are kept entries: jaxlib multiplies a compressed matrix (`jax.experimental.sparse.BCSR`) with a dense one on the
CPU. Accelerators and meshes are better served by whole matrices.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_WORD = 32
_WORDS = 8
# Entries whose rows are gathered at once: 2,048 rows of 512 float32 stay in a core's cache.
_CHUNK_BYTES = 4 * 2**20


class Entries(NamedTuple):
    """The marked entries of a matrix, row by row, in the order of the columns.

    Attributes:
      starts: index of the first entry of each row, and of each of its spans if it has several; after them the number
        of entries. int32 [rows * spans + 1]
      rows: row of each entry; 0 in unused slots. int32 [size]
      columns: column of each entry; 0 in unused slots. int32 [size]
      used: which slots hold an entry: the first ones. bool [size]
    """

    starts: jax.Array
    rows: jax.Array
    columns: jax.Array
    used: jax.Array


def _words(mask: jax.Array) -> jax.Array:
    """`mask [rows, columns]`, each word the bits of 32 neighbours in a row. uint32 [rows, ceil(columns / 32)]"""
    padded = jnp.pad(mask, ((0, 0), (0, -mask.shape[1] % _WORD))).reshape(mask.shape[0], -1, _WORD)
    return (padded.astype(jnp.uint32) << jnp.arange(_WORD, dtype=jnp.uint32)).sum(2, dtype=jnp.uint32)


def _words_of_columns(mask: jax.Array) -> jax.Array:
    """`mask [rows, columns]`, each word the bits of 32 neighbours in a column. uint32 [8 * ceil(rows / 256), columns]

    The rows of eight words at a time: XLA makes a slow loop of the whole sum on the CPU.
    """
    padded = jnp.pad(mask, ((0, -mask.shape[0] % (_WORDS * _WORD)), (0, 0)))
    bits = jnp.arange(_WORD, dtype=jnp.uint32)[:, None]

    def of_piece(piece: jax.Array) -> jax.Array:
        return (piece.astype(jnp.uint32) << bits).sum(1, dtype=jnp.uint32)

    return lax.map(of_piece, padded.reshape(-1, _WORDS, _WORD, mask.shape[1])).reshape(-1, mask.shape[1])


def _index_of_bit(word: jax.Array, rank: jax.Array) -> jax.Array:
    """The index of the set bit of each `word` that has `rank` set bits below it, by halving."""
    index = jnp.zeros_like(rank)
    for half in (16, 8, 4, 2, 1):
        below = lax.population_count(word & jnp.uint32((1 << half) - 1)).astype(jnp.int32)
        upper = rank >= below
        rank = jnp.where(upper, rank - below, rank)
        word = jnp.where(upper, word >> half, word)
        index = index + jnp.where(upper, half, 0)
    return index


def entries(mask: jax.Array, size: int, spans: tuple[int, ...] = (), by_column: bool = False) -> Entries:
    """The True entries of a mask.

    Args:
      mask: bool [rows, columns].
      size: number of slots, at least the number of True entries.
      spans: lengths of consecutive spans that make up the columns and are distinguished in `starts`; () for one.
      by_column: go through the matrix column by column: the entries of `mask.T`, which is not formed.

    Returns:
      The entries, in `size` slots.
    """
    axis = 0 if by_column else 1
    words = _words_of_columns(mask) if by_column else _words(mask)  # [rows, words] or [words, columns]
    per_line = words.shape[axis]
    counts = lax.population_count(words).astype(jnp.int32)  # like `words`, as `firsts`
    # The index of each word's first entry. Nothing is transposed: XLA would lay all that leads here out by columns.
    if by_column:
        ends = jnp.cumsum(counts.sum(0))
        firsts = ends - counts.sum(0) + jnp.cumsum(counts, 0) - counts
    else:
        ends = jnp.cumsum(counts.reshape(-1))
        firsts = (ends - counts.reshape(-1)).reshape(counts.shape)
    slots = jnp.arange(size, dtype=jnp.int32)
    used = slots < ends[-1]
    # The word of each slot: as many words have begun as there are marks up to it.
    begun = jnp.zeros(size, jnp.int32).at[firsts.reshape(-1)].add(1, mode="drop")  # [size]
    number = jnp.cumsum(begun) - 1  # [size]
    row, word = number // per_line, number % per_line  # [size]
    at = (word, row) if by_column else (row, word)
    column = _WORD * word + _index_of_bit(words[at], slots - firsts[at])  # [size]
    starts = []
    for begin in itertools.accumulate(spans[:-1], initial=0):
        low = lax.index_in_dim(words, begin // _WORD, axis, keepdims=False) & jnp.uint32((1 << begin % _WORD) - 1)
        before = lax.index_in_dim(firsts, begin // _WORD, axis, keepdims=False)
        starts.append(before + lax.population_count(low).astype(jnp.int32))
    return Entries(
        starts=jnp.append(jnp.stack(starts, 1).reshape(-1), ends[-1]),
        rows=jnp.where(used, row, 0),
        columns=jnp.where(used, column, 0),
        used=used,
    )


def product(values: jax.Array, columns: jax.Array, starts: jax.Array, dense: jax.Array) -> jax.Array:
    """A matrix, given by its entries, times a dense one.

    Args:
      values: value of each entry, 0 in unused slots. [size]
      columns: column of each entry. int32 [size]
      starts: index of the first entry of each row, and the number of entries. int32 [rows + 1]
      dense: the other factor. [columns, d] or [columns]

    Returns:
      [rows, d] or [rows], summed in the dtype of the factors.
    """
    shape = (starts.shape[0] - 1, dense.shape[0])
    # Not at the top: it imports a good part of SciPy, which takes longer than many a command takes to run.
    from jax.experimental import sparse

    return sparse.BCSR((values, columns, starts), shape=shape, indices_sorted=True, unique_indices=True) @ dense


def sampled_product(a: jax.Array, b: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Single entries of `a b^T`.

    Args:
      a: the first factor. [n, d]
      b: the second factor, transposed. [m, d]
      rows: row of `a` for each entry. int32 [size]
      columns: row of `b` for each entry. int32 [size]

    Returns:
      The products of row `rows[i]` of a with row `columns[i]` of b. [size]
    """
    size, d = rows.shape[0], a.shape[1]
    chunk = max(1, min(size, _CHUNK_BYTES // (a.dtype.itemsize * d)))
    parts = -(-size // chunk)

    def of_chunk(indices: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (a[indices[0]] * b[indices[1]]).sum(1)  # [chunk]

    padded = tuple(jnp.pad(indices, (0, parts * chunk - size)).reshape(parts, chunk) for indices in (rows, columns))
    return lax.map(of_chunk, padded).reshape(-1)[:size]
