"""The k entries with the largest keys of every row, kept while entries of all rows stream by.

Each row has room for more than k. Newcomers that beat the row's k-th key are appended; only when some row is full are
all rows cut back to k. The longer the stream, the fewer newcomers beat the k-th key, so that sorting, which costs much,
happens ever more rarely: its share falls with the logarithm of the stream's length over its length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_MIN_ROOM = 64


class Strongest(NamedTuple):
    """Rows with up to k kept entries and room for newcomers.

    Attributes:
      key: float32 [rows, room], `floor`'s first value in empty places.
      values: of the entries. [rows, room] each
      filled: places in use, the first ones. int32 [rows]
      floor: what a newcomer's key must exceed: the k-th largest key at the last cut. float32 [rows]
    """

    key: jax.Array
    values: dict[str, jax.Array]
    filled: jax.Array
    floor: jax.Array


class Newcomers(NamedTuple):
    """Entries in the order of their rows.

    Attributes:
      row: of each. int32 [n]
      key: float32 [n]
      values: [n] each
      used: which places hold an entry: the first ones. bool [n]
      starts: place of the first entry of each row, and after them the number of entries. int32 [rows + 1]
    """

    row: jax.Array
    key: jax.Array
    values: dict[str, jax.Array]
    used: jax.Array
    starts: jax.Array


def empty(n_rows: int, k: int, floor: float, values: dict[str, tuple[float, jnp.dtype]]) -> Strongest:
    """No entries.

    Args:
      n_rows: rows.
      k: entries that are wanted of each.
      floor: below every key.
      values: what empty places hold, and the dtype, by name.
    """
    shape = (n_rows, k + max(k, _MIN_ROOM))
    return Strongest(
        jnp.full(shape, floor, jnp.float32),
        {name: jnp.full(shape, value, dtype) for name, (value, dtype) in values.items()},
        jnp.zeros(n_rows, jnp.int32),
        jnp.full(n_rows, floor, jnp.float32),
    )


def cut(kept: Strongest, k: int) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Keys and values of the k strongest of each row by falling key, [rows, k] each; the earlier wins a tie."""
    key, order = lax.top_k(kept.key, k)
    return key, {name: jnp.take_along_axis(value, order, axis=1) for name, value in kept.values.items()}


def _cut_back(kept: Strongest, k: int, floor: float) -> Strongest:
    key, values = cut(kept, k)
    return Strongest(
        jnp.full_like(kept.key, floor).at[:, :k].set(key),
        {name: kept.values[name].at[:, :k].set(value) for name, value in values.items()},
        jnp.minimum(kept.filled, k),
        key[:, -1],
    )


def add(kept: Strongest, new: Newcomers, k: int, floor: float) -> Strongest:
    """Takes in newcomers.

    Args:
      kept: of the stream so far.
      new: n entries.
      k: as for `empty`.
      floor: as for `empty`.

    Returns:
      The rows with all that may yet be among the k strongest. Of equal keys the earlier counts as the stronger.
    """
    room = kept.key.shape[1]
    ordinal = jnp.arange(new.row.shape[0], dtype=jnp.int32) - new.starts[new.row]  # among its row's newcomers

    def append(kept: Strongest, seen: jax.Array) -> tuple[Strongest, jax.Array, jax.Array]:
        """Appends what fits, of the newcomers from `seen [rows]` on; the new `seen`, and whether all were."""
        candidate = new.used & (ordinal >= seen[new.row]) & (new.key > kept.floor[new.row])
        before = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(candidate, dtype=jnp.int32)])
        first = before[new.starts]  # [rows + 1]
        place = kept.filled[new.row] + before[:-1] - first[new.row]
        fits = candidate & (place < room)
        target = (jnp.where(fits, new.row, kept.key.shape[0]), place)
        filled = kept.filled + first[1:] - first[:-1]
        left = jnp.where(candidate & ~fits, ordinal, jnp.iinfo(jnp.int32).max)
        seen = jnp.full_like(seen, jnp.iinfo(jnp.int32).max).at[new.row].min(left)
        kept = Strongest(
            kept.key.at[target].set(new.key, mode="drop"),
            {name: value.at[target].set(new.values[name], mode="drop") for name, value in kept.values.items()},
            jnp.minimum(filled, room),
            kept.floor,
        )
        return kept, seen, (filled <= room).all()

    def again(carry: tuple[Strongest, jax.Array, jax.Array]) -> tuple[Strongest, jax.Array, jax.Array]:
        kept, seen, _ = carry
        return append(_cut_back(kept, k, floor), seen)

    first = append(kept, jnp.zeros_like(kept.filled))
    return lax.while_loop(lambda carry: ~carry[2], again, first)[0]
