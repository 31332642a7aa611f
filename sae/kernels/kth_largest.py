"""Exact selection of the largest entries of a matrix, without a sort.

For non-negative floats the IEEE bits are monotone in the value, so the k-th largest value is an integer search:
one bit per pass over the matrix, each pass a count. Counts add up over devices, so the same function is
exact on a sharded matrix, where it costs one scalar all-reduce per pass.
The idea is that of t5x's `binary_search.topk_mask`. One CPU searches a few candidates instead of the whole matrix.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from sae.kernels import kept_entries

Method = Literal["candidates", "bisection"]
# The number of rows that the search for candidates samples, and its target, in candidates per wanted entry: with that
# many rows the estimate is off by a few percent.
_SAMPLE_ROWS = 128
_CANDIDATES = 1.3
_CANDIDATE_COLUMNS = 1024


def default_method(n_devices: int) -> Method:
    """Candidates are picked out of the matrix, which only one CPU does faster than counting in all of it."""
    return "candidates" if n_devices == 1 and jax.default_backend() == "cpu" else "bisection"


def _bits(z: jax.Array) -> jax.Array:
    """The bits of positive entries as int32, 0 for every other entry (negative zero and NaN among them)."""
    return jnp.where(z > 0, lax.bitcast_convert_type(z, jnp.int32), 0)


def _count(hits: jax.Array) -> jax.Array:
    """Number of True in `hits [rows, columns]`, int32.

    Rows are summed in float32, which is exact up to 2^24 columns and twice as fast as int32 on the CPU.
    """
    return hits.sum(1, dtype=jnp.float32).astype(jnp.int32).sum()


def _kth_by_bisection(z: jax.Array, count: int, passes: int = 31) -> jax.Array:
    """The `count`-th largest entry of `z [rows, columns]`, rounded down to its `passes` leading bits."""
    bits = _bits(z)

    def refine(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (1 << (30 - i))
        return jnp.where(_count(bits >= candidate) >= count, candidate, found)

    return lax.bitcast_convert_type(lax.fori_loop(0, passes, refine, jnp.int32(0)), jnp.float32)


def _kth_among_candidates(z: jax.Array, count: int) -> jax.Array:
    """As `_kth_by_bisection`, after a few rows have shown where the threshold must lie.

    Should they mislead, the whole matrix is searched.
    """
    rows, columns = z.shape
    size = -(-min(2 * count, rows * columns) // _CANDIDATE_COLUMNS) * _CANDIDATE_COLUMNS
    sample = z[:: max(1, rows // _SAMPLE_ROWS)]  # [about _SAMPLE_ROWS, columns]
    low = _kth_by_bisection(sample, math.ceil(_CANDIDATES * count * sample.shape[0] / rows), passes=16)
    found = kept_entries.entries((z >= low) & (z > 0), size)
    n = found.starts[-1]  # []
    enough = (n <= size) & ((n >= count) | (low == 0))
    candidates = jnp.where(found.used, z[found.rows, found.columns], 0.0)  # [size]
    # In several rows: a row is counted in float32.
    candidates = candidates.reshape(-1, _CANDIDATE_COLUMNS)  # [size / _CANDIDATE_COLUMNS, _CANDIDATE_COLUMNS]
    return lax.cond(enough, lambda: _kth_by_bisection(candidates, count), lambda: _kth_by_bisection(z, count))


def kth_largest(z: jax.Array, count: int, method: Method) -> jax.Array:
    """The `count`-th largest entry of `z [rows, columns]`, or 0 when it is not positive.

    Returns:
      A float32 scalar, exactly one of the entries or 0.
    """
    return _kth_among_candidates(z, count) if method == "candidates" else _kth_by_bisection(z, count)


def _first_of(ties: jax.Array, wanted: jax.Array, column_order: jax.Array) -> jax.Array:
    """The first `wanted` True of `ties [rows, columns]`, row by row, columns by `column_order [columns]`.

    Found by bisection on the row and then on the column: counts only, so nothing moves between devices.
    """
    rows, columns = ties.shape
    row = lax.broadcasted_iota(jnp.int32, ties.shape, 0)  # [rows, columns]
    column = jnp.broadcast_to(column_order[None], ties.shape)  # [rows, columns]

    def largest_below(index: jax.Array, hits: jax.Array, size: int, room: jax.Array) -> jax.Array:
        """The largest p with at most `room` hits at an index < p. []"""

        def refine(i: jax.Array, found: jax.Array) -> jax.Array:
            candidate = found + (1 << (size.bit_length() - i))
            fits = (_count(hits & (index < candidate)) <= room) & (candidate <= size)
            return jnp.where(fits, candidate, found)

        return lax.fori_loop(0, size.bit_length() + 1, refine, jnp.int32(0))

    last = largest_below(row, ties, rows, wanted)
    before = ties & (row < last)
    inside = ties & (row == last)
    end = largest_below(column, inside, columns, wanted - _count(before))
    return before | (inside & (column < end))


def smallest_kept(z: jax.Array, keep: jax.Array) -> jax.Array:
    """The smallest entry of `z [rows, columns]` that the mask `keep` keeps, or 0 if it keeps none. float32 []"""
    smallest = jnp.min(jnp.where(keep, z, jnp.inf))
    return jnp.where(jnp.isfinite(smallest), smallest, 0.0)


def batch_top_k(
    z: jax.Array, count: int, method: Method, column_order: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Marks the `count` largest positive entries of the whole matrix `z [rows, columns]`.

    Exactly `count` entries are kept, or every positive one where there are fewer. Among equal entries at the threshold,
    those of earlier rows and then of earlier columns win.

    Args:
      z: float32.
      count: entries to keep.
      method: how the threshold is searched; both give the same result.
      column_order: the rank of each column in a tie, where columns are not stored in order. int32 [columns].

    Returns:
      The mask, bool like `z`, and the smallest kept entry (0 if nothing is kept), a float32 scalar.
    """
    threshold = kth_largest(z, count, method)
    if column_order is None:
        column_order = jnp.arange(z.shape[1], dtype=jnp.int32)

    def all_positive() -> tuple[jax.Array, jax.Array]:
        return z > 0, smallest_kept(z, z > 0)

    def exactly() -> tuple[jax.Array, jax.Array]:
        above = z > threshold
        return above | _first_of(z == threshold, count - _count(above), column_order), threshold

    def no_ties() -> tuple[jax.Array, jax.Array]:
        return z >= threshold, threshold

    tied = _count(z >= threshold) > count
    return lax.switch(jnp.where(threshold > 0, 1 + tied, 0), [all_positive, no_ties, exactly])


def row_threshold(z: jax.Array, count: jax.Array) -> jax.Array:
    """For each row of `z [rows, columns]` the `count`-th largest entry, or 0 when it is not positive.

    Stops as soon as the threshold of every row keeps exactly `count` entries, which is long before the last bit.
    The threshold then lies between the entries of rank `count` and `count + 1`.

    Returns:
      float32 [rows].
    """
    bits = _bits(z)

    def kept(threshold: jax.Array) -> jax.Array:
        return (bits >= threshold[:, None]).sum(1, dtype=jnp.float32).astype(jnp.int32)

    def unfinished(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        i, _, exact = carry
        return (i < 31) & ~exact

    def refine(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        i, found, _ = carry
        candidate = found | (1 << (30 - i))
        found = jnp.where(kept(candidate) >= count, candidate, found)
        return i + 1, found, (kept(found) == count).all()

    start = (jnp.int32(0), jnp.zeros(z.shape[0], jnp.int32), jnp.array(False))
    return lax.bitcast_convert_type(lax.while_loop(unfinished, refine, start)[1], jnp.float32)


def row_top_k(z: jax.Array, k: int, column_order: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Marks the `k` largest positive entries of each row of `z [rows, columns]`, or all where there are fewer.

    Among equal entries at a row's threshold, those of earlier columns win.

    Args:
      z: float32.
      k: entries to keep in a row.
      column_order: the rank of each column in a tie, as in `batch_top_k`. int32 [columns]

    Returns:
      The mask, bool like `z`, and the smallest kept entry (0 if nothing is kept), a float32 scalar.
    """
    threshold = row_threshold(z, jnp.int32(k))[:, None]  # [rows, 1]
    positive = (z >= threshold) & (z > 0)  # [rows, columns]
    if column_order is None:
        column_order = jnp.arange(z.shape[1], dtype=jnp.int32)

    def exactly() -> jax.Array:
        above = z > threshold
        ties = positive & ~above
        room = k - above.sum(1, dtype=jnp.int32)  # [rows]
        bits = z.shape[1].bit_length()

        def refine(i: jax.Array, end: jax.Array) -> jax.Array:
            candidate = end + (1 << (bits - i))
            fits = (ties & (column_order < candidate[:, None])).sum(1) <= room
            return jnp.where(fits & (candidate <= z.shape[1]), candidate, end)

        end = lax.fori_loop(0, bits + 1, refine, jnp.zeros(z.shape[0], jnp.int32))
        return above | (ties & (column_order < end[:, None]))

    keep = lax.cond((positive.sum(1) > k).any(), exactly, lambda: positive)
    return keep, smallest_kept(z, keep)
