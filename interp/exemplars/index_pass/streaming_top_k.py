"""The k entries with the largest keys of every row, kept while the entries of all rows stream by.

Rows are the last axis of every array. Each row has a capacity of more than k. A candidate whose key is above the row's
threshold, its k-th largest key so far, is appended; only when a row is full are all rows reduced to their k largest
entries. The longer the stream, the fewer candidates are above the threshold, so that sorting, which is expensive,
happens ever more rarely: its share of the work falls with the logarithm of the stream's length over its length.

New entries come as a list, which suits a CPU, or as a matrix, which is added without a gather or a scatter.
"""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

_MIN_SPARE = 64  # places beyond k in every row, so that a small k does not mean a sort for each batch
# Entries of a row that are appended together: of a long stream few are above the threshold.
_AT_ONCE = 8


class StreamingTopK(NamedTuple):
    """The entries of each row that may be among its k largest.

    Attributes:
      key: the keys of the entries; empty places hold a key below all others. float32 [capacity, rows]
      values: what each entry carries, by name. [capacity, rows] each
      n_filled: number of used places, which come first. int32 [rows]
      threshold: the k-th largest key at the last reduction, which a candidate must exceed. float32 [rows]
    """

    key: jax.Array
    values: dict[str, jax.Array]
    n_filled: jax.Array
    threshold: jax.Array


class Candidates(NamedTuple):
    """New entries, in the order of their rows.

    Attributes:
      row: the row of each entry. int32 [n]
      key: the key of each entry. float32 [n]
      values: what each entry carries, by name. [n] each
      used: which places hold an entry: the first ones. bool [n]
      starts: the place of each row's first entry, and at the end the number of entries. int32 [rows + 1]
    """

    row: jax.Array
    key: jax.Array
    values: dict[str, jax.Array]
    used: jax.Array
    starts: jax.Array


# The rows, the first rank of each row that was not appended yet, and whether all candidates were.
_Carry: TypeAlias = tuple[StreamingTopK, jax.Array, jax.Array]


def empty(n_rows: int, k: int, lowest: float, values: dict[str, tuple[float, jnp.dtype]]) -> StreamingTopK:
    """Rows without entries.

    Args:
      n_rows: number of rows.
      k: number of entries that are wanted of each row.
      lowest: a key below every entry's key.
      values: by name, what empty places hold, and the dtype.
    """
    shape = (k + max(k, _MIN_SPARE), n_rows)
    return StreamingTopK(
        jnp.full(shape, lowest, jnp.float32),
        {name: jnp.full(shape, value, dtype) for name, (value, dtype) in values.items()},
        jnp.zeros(n_rows, jnp.int32),
        jnp.full(n_rows, lowest, jnp.float32),
    )


def largest(kept: StreamingTopK, k: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Keys and values of each row's k largest entries, by falling key, [k, rows] each; the earlier one wins a tie."""
    names = tuple(kept.values)
    falling, *values = lax.sort((-kept.key, *(kept.values[name] for name in names)), dimension=0, num_keys=1)
    return -falling[:k], {name: value[:k] for name, value in zip(names, values, strict=True)}


def _reduce(kept: StreamingTopK, k: int, lowest: float) -> StreamingTopK:
    """The rows without the entries that are not among the k largest."""
    key, values = largest(kept, k)  # [k, rows]
    return StreamingTopK(
        jnp.full_like(kept.key, lowest).at[:k].set(key),
        {name: kept.values[name].at[:k].set(value) for name, value in values.items()},
        jnp.minimum(kept.n_filled, k),
        key[-1],
    )


def add_list(kept: StreamingTopK, new: Candidates, k: int, lowest: float) -> StreamingTopK:
    """Adds new entries to their rows.

    Args:
      kept: the entries of the stream so far.
      new: n candidates.
      k: number of entries that are wanted of each row.
      lowest: a key below every entry's key.

    Returns:
      The rows with every entry that may be among the k largest. Of equal keys the earlier one counts as the larger.
    """
    capacity, n_rows = kept.key.shape
    never = jnp.iinfo(jnp.int32).max
    rank = jnp.arange(new.row.shape[0], dtype=jnp.int32) - new.starts[new.row]  # [n], among its row's candidates

    def append(kept: StreamingTopK, next_rank: jax.Array) -> _Carry:
        """Appends what fits of the candidates from `next_rank [rows]` on.

        Returns:
          The rows, the first rank of each row that did not fit [rows], and whether all candidates fitted.
        """
        wanted = new.used & (rank >= next_rank[new.row]) & (new.key > kept.threshold[new.row])  # [n]
        n_before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(wanted, dtype=jnp.int32)])  # [n + 1]
        first = n_before[new.starts]  # [rows + 1]
        place = kept.n_filled[new.row] + n_before[:-1] - first[new.row]  # [n]
        fits = wanted & (place < capacity)  # [n]
        target = (place, jnp.where(fits, new.row, n_rows))  # out of range, and dropped, where it does not fit
        n_filled = kept.n_filled + first[1:] - first[:-1]  # [rows]
        left_rank = jnp.where(wanted & ~fits, rank, never)  # [n]
        next_rank = jnp.full_like(next_rank, never).at[new.row].min(left_rank)  # [rows]
        kept = StreamingTopK(
            kept.key.at[target].set(new.key, mode="drop"),
            {name: value.at[target].set(new.values[name], mode="drop") for name, value in kept.values.items()},
            jnp.minimum(n_filled, capacity),
            kept.threshold,
        )
        return kept, next_rank, (n_filled <= capacity).all()

    def reduce_and_append(carry: _Carry) -> _Carry:
        kept, next_rank, _ = carry
        return append(_reduce(kept, k, lowest), next_rank)

    first = append(kept, jnp.zeros_like(kept.n_filled))
    return lax.while_loop(lambda carry: ~carry[2], reduce_and_append, first)[0]


def add_matrix(
    kept: StreamingTopK,
    key: jax.Array,
    values: dict[str, jax.Array],
    present: jax.Array,
    k: int,
    lowest: float,
) -> StreamingTopK:
    """Adds new entries to their rows; element [i, j] of each matrix is for row j.

    Args:
      kept: the entries of the stream so far.
      key: the keys. float32 [n, rows]
      values: what each entry carries, by name. [n, rows] or [n, 1] each
      present: which elements are entries. bool [n, rows]
      k: number of entries that are wanted of each row.
      lowest: a key below every entry's key.

    Returns:
      What `add_list` returns of the same entries in the order of `n`.
    """
    capacity, n = kept.key.shape[0], key.shape[0]
    wanted = present & (key > kept.threshold)  # [n, rows]
    n_wanted = wanted.sum(0, dtype=jnp.int32)  # [rows]
    # Counts of up to n, which products of zeros and ones give exactly.
    earlier = jnp.tril(jnp.ones((n, n), jnp.bfloat16), -1)
    rank = jnp.dot(earlier, wanted.astype(jnp.bfloat16), preferred_element_type=jnp.float32)  # [n, rows]
    rank = jnp.where(wanted, rank.astype(jnp.int32), -1)  # [n, rows]

    def append(carry: tuple[StreamingTopK, jax.Array]) -> tuple[StreamingTopK, jax.Array]:
        """Appends the next few entries of every row; `n_done []` of each row were appended."""
        kept, n_done = carry
        n_new = jnp.clip(n_wanted - n_done, 0, _AT_ONCE)  # [rows]
        full = (kept.n_filled + n_new > capacity).any()
        kept = lax.cond(full, lambda: _reduce(kept, k, lowest), lambda: kept)
        place = jnp.arange(capacity)[:, None] - kept.n_filled  # [capacity, rows], of a new entry among the new ones
        place = jnp.where(place < n_new, place, -1)  # [capacity, rows]

        def appended(old: jax.Array, new: jax.Array) -> jax.Array:
            for i in range(_AT_ONCE):
                entry = jnp.where(rank == n_done + i, new, 0).sum(0)  # [rows], a sum of one entry
                old = jnp.where(place == i, entry, old)  # [capacity, rows]
            return old

        grown = StreamingTopK(
            appended(kept.key, key),
            {name: appended(value, values[name]) for name, value in kept.values.items()},
            kept.n_filled + n_new,
            kept.threshold,
        )
        return grown, n_done + _AT_ONCE

    def unfinished(carry: tuple[StreamingTopK, jax.Array]) -> jax.Array:
        return (n_wanted > carry[1]).any()

    return lax.while_loop(unfinished, append, (kept, jnp.int32(0)))[0]
