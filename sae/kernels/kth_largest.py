"""Exact selection of the largest entries of a matrix, without a sort.

For non-negative floats the IEEE bits are monotone in the value, so the k-th largest value is an integer search: each
pass over the matrix counts the entries that reach a few bounds. Counts add up over devices, so the same function is
exact on a sharded matrix, where a pass costs one all-reduce of these few counts.
The idea is that of t5x's `binary_search.topk_mask`. One CPU searches a few candidates instead of the whole matrix.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from sae import mesh
from sae.kernels import kept_entries

# The bits that a search begins with: of the largest float32 that devices take for zero, and of what follows infinity.
_ZERO, _END = 0x007FFFFF, 0x7F800001
# Distances, in float32 steps, between a guess of the threshold and the bounds of the first pass: a threshold moves by
# a few thousandths (2^15 steps) from one batch to the next.
_STEPS_FROM_GUESS = (-(2**18), -(2**15), -(2**12), 0, 2**12, 2**15, 2**18)
# The number of rows that the search for candidates samples, and its target, in candidates per wanted entry: with that
# many rows the estimate is off by a few percent.
_SAMPLE_ROWS = 128
_CANDIDATES = 1.3
_CANDIDATE_COLUMNS = 1024


class Search(NamedTuple):
    """How a threshold is searched: however it is, the result is the same.

    Attributes:
      candidates: pick candidates out of the matrix first, which only one CPU does faster than counting in all of it.
      guess: a value that the threshold is probably close to, as that of the batch before; 0 if there is none.
        float32 []
    """

    candidates: bool = False
    guess: jax.Array | float = 0.0


class _Found(NamedTuple):
    """A threshold: its bits (0 where it is not positive), and how many entries reach and exceed it. int32 [] each"""

    bits: jax.Array
    reach: jax.Array
    exceed: jax.Array


class _Narrowing(NamedTuple):
    """An interval of bits, `low` inside and `high` outside, that holds the threshold, and the bounds to count next.

    `reach` entries reach `low` and `exceed` reach `high`. int32 [] each, but `bounds [7]`
    """

    low: jax.Array
    high: jax.Array
    reach: jax.Array
    exceed: jax.Array
    bounds: jax.Array


def _bits(z: jax.Array) -> jax.Array:
    """The bits of positive entries as int32, 0 for every other entry (negative zero and NaN among them)."""
    return jnp.where(z > 0, lax.bitcast_convert_type(z, jnp.int32), 0)


def _float(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def _reaching(z: jax.Array, bounds: jax.Array) -> jax.Array:
    """How many entries of `z [rows, columns]` reach each of the bounds. int32 like `bounds`"""
    return jnp.stack([(z >= bound).sum(dtype=jnp.int32) for bound in bounds])


def _next_bounds(low: jax.Array, high: jax.Array, reach: jax.Array, exceed: jax.Array, count: int) -> jax.Array:
    """Seven bounds inside an interval: its quarters, and four around where the threshold is if entries lie evenly.

    There, it is missed by about half of the width over the root of the number of entries. int32 [7]
    """
    width, entries = (high - low).astype(jnp.float32), jnp.maximum(reach - exceed, 1).astype(jnp.float32)
    place = width * ((reach - count).astype(jnp.float32) / entries)
    offsets = jnp.stack([place + distance * width / jnp.sqrt(entries) for distance in (-2.0, -0.5, 0.5, 2.0)])
    near = low + jnp.clip(offsets, 0, width).astype(jnp.int32)
    quarters = low + (high - low) // 4 * jnp.arange(1, 4, dtype=jnp.int32)
    return jnp.clip(jnp.concatenate([quarters, near]), low + 1, high - 1)


def _kth_by_counting(z: jax.Array, count: int, guess: jax.Array | float) -> _Found:
    """The `count`-th largest entry of `z [rows, columns]`.

    Seven bounds a pass: what a GPU and a TPU count while they read the matrix once.
    """

    def unfinished(carry: _Narrowing) -> jax.Array:
        return carry.high - carry.low > 1

    def narrow(carry: _Narrowing) -> _Narrowing:
        low, high, reach, exceed, bounds = carry
        counts = mesh.total(_reaching, z, _float(bounds))  # [7]
        reached = counts >= count
        low, reach = jnp.where(reached, bounds, low).max(), jnp.where(reached, counts, reach).min()
        high, exceed = jnp.where(reached, high, bounds).min(), jnp.where(reached, exceed, counts).max()
        return _Narrowing(low, high, reach, exceed, _next_bounds(low, high, reach, exceed, count))

    low, high = jnp.int32(_ZERO), jnp.int32(_END)
    guessed = _bits(jnp.asarray(guess, jnp.float32)) + jnp.array(_STEPS_FROM_GUESS, jnp.int32)  # [7]
    evenly = jnp.arange(1, 8, dtype=jnp.int32) * (_END // 8)  # [7]
    bounds = jnp.clip(jnp.where(jnp.asarray(guess) > 0, guessed, evenly), low + 1, high - 1)  # [7]
    start = _Narrowing(low, high, jnp.int32(z.size), jnp.int32(0), bounds)
    found = lax.while_loop(unfinished, narrow, start)
    return _Found(jnp.where(found.low == _ZERO, 0, found.low), found.reach, found.exceed)


def _count(hits: jax.Array) -> jax.Array:
    """Number of True in `hits [rows, columns]`, int32.

    Rows are summed in float32, which is exact up to 2^24 columns and twice as fast as int32 on the CPU.
    """
    return hits.sum(1, dtype=jnp.float32).astype(jnp.int32).sum()


def _kth_by_bisection(z: jax.Array, count: int, passes: int = 31) -> _Found:
    """As `_kth_by_counting`, but for one CPU, to which seven counts are seven passes.

    The value is rounded down to its `passes` leading bits.
    """
    bits = _bits(z)

    def refine(i: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (1 << (30 - i))
        return jnp.where(_count(bits >= candidate) >= count, candidate, found)

    found = lax.fori_loop(0, passes, refine, jnp.int32(0))
    return _Found(found, _count(bits >= found), _count(bits > found))


def _kth_among_candidates(z: jax.Array, count: int) -> _Found:
    """As `_kth_by_bisection`, after a few rows have shown where the threshold must lie.

    Should they mislead, the whole matrix is searched.
    """
    rows, columns = z.shape
    size = -(-min(2 * count, rows * columns) // _CANDIDATE_COLUMNS) * _CANDIDATE_COLUMNS
    sample = z[:: max(1, rows // _SAMPLE_ROWS)]  # [about _SAMPLE_ROWS, columns]
    low = _kth_by_bisection(sample, math.ceil(_CANDIDATES * count * sample.shape[0] / rows), passes=16).bits
    found = kept_entries.entries((z >= _float(low)) & (z > 0), size)
    n = found.starts[-1]  # []
    enough = (n <= size) & ((n >= count) | (low == 0))
    candidates = jnp.where(found.used, z[found.rows, found.columns], 0.0)  # [size]
    # In several rows: a row is counted in float32.
    candidates = candidates.reshape(-1, _CANDIDATE_COLUMNS)  # [size / _CANDIDATE_COLUMNS, _CANDIDATE_COLUMNS]
    return lax.cond(enough, lambda: _kth_by_bisection(candidates, count), lambda: _kth_by_bisection(z, count))


def _kth(z: jax.Array, count: int, search: Search) -> _Found:
    return _kth_among_candidates(z, count) if search.candidates else _kth_by_counting(z, count, search.guess)


def kth_largest(z: jax.Array, count: int, search: Search) -> jax.Array:
    """The `count`-th largest entry of `z [rows, columns]`, or 0 when it is not positive.

    Returns:
      A float32 scalar, exactly one of the entries or 0.
    """
    return _float(_kth(z, count, search).bits)


def _last_kept(ties: jax.Array, wanted: jax.Array, column_order: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the first `wanted` True of `ties [rows, columns]` end, row by row, columns by `column_order [columns]`.

    Returns:
      The row in which they end, and the order of the column there that is the first one beyond them. int32 [] each
    """
    counts = mesh.place(ties.sum(1, dtype=jnp.int32), None)  # [rows]
    ends = jnp.cumsum(counts)  # [rows]
    row = (ends <= wanted).sum(dtype=jnp.int32)
    room = wanted - jnp.where(ends <= wanted, counts, 0).sum()
    inside = (ties & (jnp.arange(ties.shape[0])[:, None] == row)).any(0)  # [columns]
    order = mesh.place(jnp.where(inside, column_order, ties.shape[1]), None)  # [columns]
    return row, jnp.take(jnp.sort(order), room)


def smallest_kept(z: jax.Array, keep: jax.Array) -> jax.Array:
    """The smallest entry of `z [rows, columns]` that the mask `keep` keeps, or 0 if it keeps none. float32 []"""
    smallest = jnp.min(jnp.where(keep, z, jnp.inf))
    return jnp.where(jnp.isfinite(smallest), smallest, 0.0)


def batch_top_k(
    z: jax.Array, count: int, search: Search, column_order: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Marks the `count` largest positive entries of the whole matrix `z [rows, columns]`.

    Exactly `count` entries are kept, or every positive one where there are fewer. Among equal entries at the threshold,
    those of earlier rows and then of earlier columns win.

    Args:
      z: float32.
      count: entries to keep.
      search: how the threshold is searched.
      column_order: the rank of each column in a tie, where columns are not stored in order. int32 [columns].

    Returns:
      The mask, bool like `z`, and the smallest kept entry (0 if nothing is kept), a float32 scalar.
    """
    rows, columns = z.shape
    if column_order is None:
        column_order = jnp.arange(columns, dtype=jnp.int32)
    found = _kth(z, count, search)
    threshold = _float(found.bits)
    row, end = lax.cond(
        (found.bits > 0) & (found.reach > count),
        lambda: _last_kept(z == threshold, count - found.exceed, column_order),
        lambda: (jnp.int32(rows), jnp.int32(0)),
    )
    # What an entry must reach, by its row, and in the row where the ties end by its column: as an expression of small
    # arrays the mask is computed where it is used, and not stored.
    least, above = jnp.where(found.bits > 0, threshold, _float(jnp.int32(_ZERO + 1))), _float(found.bits + 1)
    of_row = jnp.where(jnp.arange(rows) < row, least, above)[:, None]  # [rows, 1]
    of_column = jnp.where(column_order < end, least, above)[None]  # [1, columns]
    keep = z >= jnp.where((jnp.arange(rows) == row)[:, None], of_column, of_row)  # [rows, columns]
    return keep, lax.cond(found.bits > 0, lambda: threshold, lambda: smallest_kept(z, z > 0))


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
